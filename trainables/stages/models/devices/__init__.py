"""Facts about processors, GPUs and energy, on this machine and on others (no torch but in `accelerator`)."""
