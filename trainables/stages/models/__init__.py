"""Networks: built, counted, placed on a device, stored."""
