"""Networks: build, count, place on a device, store; and facts about this machine's devices."""
