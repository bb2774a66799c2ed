"""Trains, evaluates, promotes and serves MiniGPT-4 and MiniGPT-v2."""

__version__ = "0.2.0"
