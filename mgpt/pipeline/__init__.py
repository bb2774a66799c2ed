"""The stage runner, fingerprints, preflight checks and the summary of a chain."""
