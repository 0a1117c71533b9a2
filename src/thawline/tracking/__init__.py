"""MLflow: servers, stale runs and redaction."""
