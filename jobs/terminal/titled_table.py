"""The form of the tables that commands print."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def titled_table(title: str, columns: Sequence[str], *, texts: int = 1) -> Table:
    """An empty table with headings.

    Args:
        title: above the table; "" for none. Like the headings it is plain text, without markup.
        columns: the headings.
        texts: how many of the first columns hold text, aligned left; the others hold figures,
            aligned right.
    """
    table = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for number, column in enumerate(columns):
        is_text = number < texts
        table.add_column(Text(column), justify="left" if is_text else "right", overflow="fold")
    return table


def figures_table(title: str, caption: str = "") -> Table:
    """An empty table of names and their values, without headings."""
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=False,
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    table.add_column(no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    return table
