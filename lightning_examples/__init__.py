"""The note's experiments as Lightning runs: ``python -m lightning_examples.NAME``."""
