"""Pictures: PNG, SVG and the interactive page."""
