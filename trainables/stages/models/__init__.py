"""Networks: built, counted, placed on a device, stored; and what this machine says of its devices."""
