"""What is searched and how it is launched."""
