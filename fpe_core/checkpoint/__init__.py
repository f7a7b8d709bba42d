"""Checkpoints: finding their files, fingerprints, loading, the autoencoder."""
