"""Where everything lies: the names of files and folders that more than one module knows (standard library only)."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[1]  # holds the packages sweeps, trainables and analysis
