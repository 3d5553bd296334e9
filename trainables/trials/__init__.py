"""Thin Ray Tune trainables over the stages."""
