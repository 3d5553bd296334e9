"""Images: find, decode and split them, and bring them to the training device."""
