"""Who trains which expert. Pure functions over numpy arrays; no torch, no clock, no global random generator."""
