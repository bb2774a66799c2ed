"""Model versions, promotion and rollback of the champion, the log of decisions, and its audit."""
