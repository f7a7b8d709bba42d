"""Names, ids and prompts as nobody would write them by accident."""

from __future__ import annotations

import numpy as np

_PIECES = (
    *("..", ".", "/", "\\", "../", "..\\", "/etc/passwd", "~", "~root", "C:\\", "nul", "CON.png"),
    *("file:///etc/passwd", "s3://bucket/x", "https://host/x?a=b", "::", "a::b"),
    *("\0", "\n", "\r\n", "\t", "\x1b[31m", "\x7f", "\u202egnp.exe", "\ufeff", "\u2028", "\xa0"),
    *(
        "é",
        "é",
        "日本",
        "🦊",
        "ﷺ",
        "Ω" * 90,
        "x" * 300,
        "y" * 5000,
        " ",
        "",
        "-",
        "--rf",
        "_",
        "__",
    ),
    *("%2e%2e%2f", "%00", "$(touch x)", "`id`", ";", "|", "&", "*", "?", "[a]", "{x}", "{0.a}"),
    *("<script>", "'", '"', "#", "# x: y", "- a", "null", "NaN", "0", "-1", "1e999", "True", "cat"),
    *(".tmp-0", ".ledger", ".plan", "metadata.parquet", "part-0", "edited", "README.md", "a.png"),
)


def hostile_text(chance: np.random.Generator) -> str:
    """One to five of the pieces; valid UTF-8, which Parquet makes sure of, and nothing else."""
    count = int(chance.integers(1, 6))
    return "".join(_PIECES[i] for i in chance.integers(len(_PIECES), size=count))
