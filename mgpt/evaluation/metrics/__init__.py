"""Metrics, one module for each evaluation task."""
