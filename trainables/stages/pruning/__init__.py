"""Channels and weights removed, and the accuracy recovered."""
