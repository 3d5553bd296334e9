"""The stages of a candidate in pure PyTorch: no Ray, no MLflow."""
