"""Runs: their directories, checkpoints, comparisons, and what is made of them when they have ended."""
