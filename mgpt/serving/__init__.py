"""Using a model: chat, boxes drawn on pictures, the MLflow model, a small HTTP API."""
