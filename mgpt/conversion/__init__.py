"""Conversion between the original checkpoints, this project's, and Hugging Face folders."""
