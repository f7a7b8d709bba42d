"""Checkpoints: where their files lie, what they hash to, how they are loaded."""
