"""MLflow runs, model versions, gates, promotion, rollback, audit and trace."""
