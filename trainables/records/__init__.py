"""Outputs: frozen records of stages and trials, and their JSON encoding (standard library only)."""
