"""The job files that come with the program."""

from __future__ import annotations

import pathlib

BUILTIN_FOLDER = pathlib.Path(__file__).parent.parent
"""Holds the ready-made job files."""
