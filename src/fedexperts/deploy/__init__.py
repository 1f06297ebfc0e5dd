"""Deployments: the same protocols over Flower, on links that go down."""
