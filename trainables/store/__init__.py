"""Content-addressed results of stages: computed once, shared between nodes, garbage-collected (no torch, no Ray)."""
