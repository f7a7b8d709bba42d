"""Drives one job from its plan to its summary: lease, stream of outcomes, commits, statistics."""
