"""Evaluation: answers of checkpoints to held-out questions, and their scores."""
