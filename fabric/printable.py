"""Text of strangers as people see it: what would act on a terminal is spelled out, and no message is endless. And sizes
and times as people read them.

Leans on nothing, so that whatever shows text can use it.
"""

from __future__ import annotations

import re

MAX_CHARS = 1000  # of one line that is shown

# Controls but for line feed and tab, the separators of lines and paragraphs, overrides of the writing direction, and
# halves of surrogate pairs, with which Python spells bytes that are no text.
_ACTING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text, in which nothing acts on a terminal but line feeds and tabs: an escape is shown as `\\x1b`.

    JSON stays the same JSON: it never holds characters below U+0020, and knows `\\u009b` for those above.
    """
    return _ACTING.sub(lambda found: f"\\{'x%02x' if found[0] < ' ' else 'u%04x'}" % ord(found[0]), text)


def one_line(text: str, limit: int = MAX_CHARS) -> str:
    """The text as one printable line of at most about `limit` characters: its beginning and its end."""
    text = printable(" ".join(shortened(text, 2 * limit).split()))
    return shortened(text, limit)


def shortened(text: str, limit: int) -> str:
    """A text of at most about `limit` characters; of a longer one the beginning and the end."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]} ... {text[len(text) - tail :]}"


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """5400 -> '1.5 h'."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
