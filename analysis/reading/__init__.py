"""MLflow and OUT to typed rows, and the facts and words in them: the only reader."""
