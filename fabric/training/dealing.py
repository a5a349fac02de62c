"""How the rows of a step are dealt out to ranks: evenly where their devices are alike, else by speed, which the first
steps measure. It is then fixed, reported and kept in checkpoints, since another deal adds the same gradients in another
order.
"""

from __future__ import annotations

from collections.abc import Sequence

from fabric.notices import notice

MEASURED = 3  # steps, after one that warms up


def shares_of(text: str) -> str:
    """Shares such as 100,40, as text. ValueError for what is none."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 20 for part in parts):
        raise ValueError("a share is a whole number above 0, one for each rank, joined by commas")
    return ",".join(str(int(part)) for part in parts)


class Dealing:
    """`speeds`: of the ranks, none where all are alike. `told` is what the user said of them, `kept` what a checkpoint
    says; `devices` are the names of those of the ranks."""

    def __init__(self, devices: Sequence[str], told: str | None, kept: str) -> None:
        self.ranks = len(devices)
        self.speeds: tuple[int, ...] = ()
        self.steps, self.sums = 0, [0.0] * self.ranks
        for shares in (told, kept):
            if shares and not self.speeds:
                found = tuple(map(int, shares.split(",")))
                if len(found) == self.ranks:
                    self.speeds = found
                elif shares == told:
                    what = f"it has {len(found)} shares, for {self.ranks} rank{'s' * (self.ranks > 1)}"
                    notice(f"--rank-shares has no effect: {what}")
        self.measures = self.ranks > 1 and not self.speeds and len(set(devices)) > 1
        self.speeds = self.speeds if self.ranks > 1 else ()

    @property
    def kept(self) -> str:
        """For checkpoints."""
        return ",".join(map(str, self.speeds))

    def saw(self, tokens_per_s: Sequence[float]) -> str | None:
        """Notes a step; once it is enough, what follows from it, in a sentence."""
        if not self.measures or not all(tokens_per_s):
            return None
        self.steps += 1
        if self.steps > 1:
            self.sums = [total + speed for total, speed in zip(self.sums, tokens_per_s, strict=True)]
        if self.steps <= MEASURED:
            return None
        self.measures = False
        self.speeds = tuple(max(1, round(100 * total / max(self.sums))) for total in self.sums)
        return f"rows are dealt by speed from here on; --rank-shares {self.kept} deals them so from the first step"
