"""Edits with known right answers, made and judged."""
