"""Simulated time: contacts, transfers, training, energy and faults of a protocol on a contact plan."""
