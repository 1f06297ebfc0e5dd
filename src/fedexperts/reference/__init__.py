"""What every key of a scenario and every event of a ledger means: read from where they are declared."""
