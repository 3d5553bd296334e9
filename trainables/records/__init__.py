"""What comes out: frozen records of stages and trials, and how they are read and written (standard library only)."""
