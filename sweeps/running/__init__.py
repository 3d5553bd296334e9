"""A sweep from start to end: teacher, trials, champions, outcome."""
