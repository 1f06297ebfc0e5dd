"""Running a protocol: simulated time, checkpoints, whole runs from a scenario."""
