"""One candidate, from data to measured artifact."""
