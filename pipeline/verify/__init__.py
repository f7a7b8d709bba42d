"""Proof after the fact: every planned edit accounted for, files readable, edits made again."""
