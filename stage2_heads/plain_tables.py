"""Tables for a terminal in which brackets are brackets, whoever prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["plain", "plain_table"]


def plain_table(title: str, caption: str) -> Table:
    """A table without columns yet, its title and caption free of markup."""
    from rich.table import Table

    return Table(title=plain(title), caption=plain(caption), caption_justify="left", title_justify="left")


def plain(name: str) -> Text:
    """A cell that is printed as it is."""
    from rich.text import Text

    return Text(name)
