"""MiniGPT-4's second-stage data: generated descriptions, repaired, filtered and reviewed."""
