"""Writes a part: images, their metadata table, and the provenance in each image."""
