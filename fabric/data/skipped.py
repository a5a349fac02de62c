"""Rows that are left out because something is wrong with them: counted by reason, and the first ones named."""

from __future__ import annotations

import re
from collections import Counter

from fabric.errors import DataError

_MOST_NAMED = 20
_MOST_REASONS = 50
_PLACE = re.compile(r"^.*?:\d+: ")
_NUMBER = re.compile(r"\d+")


class Skipped:
    """How many rows, and why. `named` holds the first ones as `file:line: reason`."""

    def __init__(self) -> None:
        self.rows = 0
        self.named: list[str] = []
        self.reasons: Counter[str] = Counter()

    def count(self, error: DataError) -> None:
        """A row that raised this. Reasons that differ in numbers alone are one."""
        self.rows += 1
        if len(self.named) < _MOST_NAMED:
            self.named.append(str(error))
        reason = _NUMBER.sub("N", _PLACE.sub("", str(error)))
        known = reason in self.reasons or len(self.reasons) < _MOST_REASONS
        self.reasons[reason if known else "other reasons"] += 1

    def told(self, source: str, rows: int) -> list[str]:
        """A sentence for each reason; `rows`: of the whole input."""
        return [f"{source}: {n:,} of {rows:,} rows skipped: {reason}" for reason, n in self.reasons.most_common()]
