"""A sweep from start to end: command, teacher, trials, champions, outcome."""
