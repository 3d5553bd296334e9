"""Ray and the machines under it."""
