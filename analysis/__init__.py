"""From MLflow records to fronts, pictures and a choice: no torch, no Ray."""
