"""Tables of a report: rows of texts. What a number looks like is decided here."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.printable import human_bytes, human_seconds, printable, shortened

MOST_CHARS = 20_000  # of a cell


@dataclass(frozen=True)
class Table:
    """Rows of texts under a head; the first cell of a row says what the row is of."""

    id: str
    caption: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    prose: bool = False
    """Its cells are texts of many words, not numbers."""
    folded: bool = False
    """It is shown when it is asked for."""


def cell(value: object) -> str:
    """Any value as a text, with whatever would act on a screen spelled out."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join("…" if isinstance(one, (list, tuple)) else cell(one) for one in value)
    return "…" if isinstance(value, dict) else printable(shortened(str(value), MOST_CHARS))


def number(value: float | None) -> str:
    """Six digits of it."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 and value == int(value) else f"{value:.6g}"


def size(count: float | None) -> str:
    """Bytes as people read them."""
    return "–" if count is None else human_bytes(count)


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    return "–" if seconds is None else human_seconds(seconds)
