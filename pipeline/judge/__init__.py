"""Scores edits and accepts or rejects them; refuses sources that cannot be reconstructed."""
