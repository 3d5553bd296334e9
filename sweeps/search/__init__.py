"""The definition of a sweep: settings, space, objectives, folder, study (no Ray)."""
