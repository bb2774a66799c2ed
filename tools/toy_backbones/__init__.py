"""The recipe of the toy backbones in `mgpt/models/shapes` (docs/shapes-world.md)."""
