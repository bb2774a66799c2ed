"""Using a model: chat, boxes drawn on images, the MLflow model, a small HTTP API."""
