"""MLflow to typed rows: the only reader."""
