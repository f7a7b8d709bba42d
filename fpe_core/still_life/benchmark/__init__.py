"""Benchmarks on edits whose exact answers are known."""
