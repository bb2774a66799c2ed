"""Callbacks of the trainer, one per module: metrics, checkpoints, early stopping, profiling, the sample log."""
