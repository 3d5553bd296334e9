"""Epochs: the loop, losses, soft labels, teacher and student."""
