"""Runs stages: what each reads and writes, its fingerprint, checks before it starts, and the summary of the chain."""
