"""Inputs: frozen settings, limits, exchange rates, and the flags derived from them (standard library only)."""
