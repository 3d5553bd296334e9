"""Networks by name: those of torchvision, of timm, for small images, and the user's own functions."""
