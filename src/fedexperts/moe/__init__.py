"""Mixture-of-Experts models as named parts."""
