"""Clients of a trained Networked MoE that answer each other over a network, with no server (extra `peer`)."""
