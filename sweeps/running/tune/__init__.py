"""Our side of Ray Tune: tuner, callbacks, schedulers."""
