"""Run a network in a runtime, or say what the machine lacks for it (no torch until one of PyTorch's is opened)."""
