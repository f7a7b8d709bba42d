"""Counts, sizes, money and durations as text for people, in tables and in reports."""

from __future__ import annotations


def count_text(number: float) -> str:
    """1,234,567, rounded to whole numbers."""
    return f"{number:,.0f}"


def size_text(size_bytes: float) -> str:
    """1.4 GB, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def money_text(amount: float) -> str:
    """Two decimals, or two significant digits if it is less than 0.01; without a currency."""
    return f"{amount:,.2f}" if amount >= 0.01 or amount == 0 else f"{amount:.2g}"


def duration_text(seconds: float) -> str:
    """3 h 20 min, 4 min 5 s, 12.3 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def or_dash(value: float | None, form: str) -> str:
    """A value, formatted by a format such as ".2f"; "-" for None."""
    return "-" if value is None else format(value, form)
