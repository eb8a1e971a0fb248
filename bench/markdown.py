"""Cells and tables of Markdown, and the rows of results that go into them."""

from collections.abc import Sequence
from typing import Any

from bench.common import Row


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; text to the left, numbers to the right, None as a dash."""
    cells = [["-" if c is None else str(c) for c in row] for row in rows]
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(head), align, *cells])


def number(value: float | None, digits: int = 2) -> str | None:
    """With so many digits; None stays."""
    return None if value is None else f"{value:.{digits}f}"


def bold(row: list[Any], ours: bool) -> list[Any]:
    """Our rows in bold."""
    return [None if c is None else f"**{c}**" for c in row] if ours else row


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [r for r in rows if r["kind"] == kind]


def percent(value: float | None) -> str | None:
    """A change with its sign; None stays."""
    return None if value is None else f"{value:+.1f} %"
