"""Reads a run folder, finished or running: status, facts, comparison, gallery, contact sheet."""
