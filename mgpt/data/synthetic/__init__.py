"""The shapes world: a procedural world of scenes that plays the part of photographs (docs/shapes-world.md)."""
