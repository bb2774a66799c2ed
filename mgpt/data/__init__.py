"""Samples, tasks, dataset readers, the synthetic world, and the training mixture."""
