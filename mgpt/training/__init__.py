"""Training with torch alone: trainer, optimizer, parallelism, checkpoints and callbacks.

Imports neither ray nor mlflow.
"""
