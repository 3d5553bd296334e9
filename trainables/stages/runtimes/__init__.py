"""Ways to run a network, and what a machine lacks for them (no torch until one is opened)."""
