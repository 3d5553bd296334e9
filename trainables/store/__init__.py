"""Results of stages, found by content: computed once, shared between nodes, collected (no torch, no Ray)."""
