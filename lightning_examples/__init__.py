"""Experiments as Lightning runs: ``python -m lightning_examples.NAME``."""
