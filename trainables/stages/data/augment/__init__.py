"""Compute augmented views as a pure function of seed, epoch and sample."""
