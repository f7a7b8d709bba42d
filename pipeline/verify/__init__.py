"""Checks a finished run: every planned edit has an outcome, files are readable, and a sample of the
edits can be made again with the same result."""
