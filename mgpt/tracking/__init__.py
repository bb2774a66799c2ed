"""MLflow runs: metrics, parameters, tags and lineage."""
