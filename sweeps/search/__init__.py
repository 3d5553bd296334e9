"""What one sweep is: settings, space, objectives, folder, study (no Ray)."""
