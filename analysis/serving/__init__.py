"""The page that `python -m analysis serve` serves on loopback."""
