"""The `mgpt` command."""
