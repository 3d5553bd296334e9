"""The whole chain in one process, its control from random weights, and its command."""
