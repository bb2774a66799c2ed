"""Training with torch alone: the loop, its optimiser and schedule, parallelism, state and callbacks. Imports neither ray nor mlflow."""
