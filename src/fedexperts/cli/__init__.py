"""The command line: one thin module per command; torch, which takes seconds, is imported where a command trains."""
