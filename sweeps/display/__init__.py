"""How a running sweep is shown."""
