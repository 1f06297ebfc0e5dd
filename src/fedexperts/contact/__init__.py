"""Who can talk when, and how fast. numpy only, no torch."""
