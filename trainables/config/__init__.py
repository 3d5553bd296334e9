"""What goes in: frozen settings, limits, prices, and the flags made of them (standard library only)."""
