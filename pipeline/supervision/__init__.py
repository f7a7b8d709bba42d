"""Tracks which worker processes which groups: crashes, stalls, stops, and the figures of a run."""
