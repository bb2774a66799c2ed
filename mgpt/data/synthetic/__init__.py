"""The shapes world: generated scenes that stand for photographs (docs/shapes-world.md)."""
