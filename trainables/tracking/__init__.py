"""From a trial's folder to MLflow, each trial exactly once: the only writer."""
