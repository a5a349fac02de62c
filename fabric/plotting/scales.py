"""What lies between numbers and a picture: axes with round ticks, smoothing, and thinning of long series."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fabric.plotting.runs import Series

_TINY = 1e-280  # differences below this are none


@dataclass
class Axis:
    """A range of values that ends on ticks."""

    low: float
    high: float
    ticks: list[float]

    def part(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def smoothed(series: Series, width: float | None) -> Series:
    """The series averaged with a Gaussian of `width` steps, in which steps within an eighth of that count as one."""
    steps, values = np.array(series.steps), np.array(series.values)
    if width is None:
        width = max(1.0, (steps[-1] - steps[0]) / 40) if len(steps) > 8 else 0.0
    if len(steps) < 3 or width * 1e12 <= np.ptp(steps):
        return series
    places, inside = np.unique(np.floor((steps - steps.min()) / (width / 8)), return_inverse=True)
    largest = float(np.abs(values).max()) or 1.0  # so that no sum overflows
    counts = np.bincount(inside)
    centers, sums = np.bincount(inside, steps) / counts, np.bincount(inside, values / largest)
    total: npt.NDArray[np.float64] = np.zeros(len(places))
    weights: npt.NDArray[np.float64] = np.zeros(len(places))
    for apart in range(-32, 33):  # four widths to either side
        near = np.searchsorted(places, places + apart).clip(max=len(places) - 1)
        weight = np.exp(-0.5 * ((centers[near] - centers) / width) ** 2) * (places[near] == places + apart)
        total += weight * sums[near]
        weights += weight * counts[near]
    return Series(centers.tolist(), (total / weights * largest).tolist())


def thinned(series: Series, columns: int) -> Series:
    """What is seen of a series in a picture of so many columns: of each the first, least, largest and last value."""
    steps, values = np.array(series.steps), np.array(series.values)
    if len(steps) <= 4 * columns:
        return series
    column = np.floor((steps - steps.min()) / (np.ptp(steps) or 1.0) * columns)
    order = np.arange(len(steps))
    kept = set()
    for ranked in (order, order[::-1], np.argsort(values, kind="stable"), np.argsort(-values, kind="stable")):
        kept.update(ranked[np.unique(column[ranked], return_index=True)[1]].tolist())
    seen = sorted(kept)
    return Series(steps[seen].tolist(), values[seen].tolist())


def nice_axis(low: float, high: float, count: int, least: float = 0.0) -> Axis:
    """About `count` ticks at multiples of 1, 2 or 5 times a power of ten, at least `least` apart; the range is widened
    to end on them."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _TINY):
        wider = max(abs(low) * 0.1, least)
        wider = wider if wider > _TINY else 1.0
        low, high = low - wider, high + wider
    rough = max((high - low) / max(count, 1), least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, [i * step for i in range(first, last + 1)])


def tick_label(value: float, axis: Axis) -> str:
    """As few digits as tell the ticks apart."""
    step = axis.ticks[1] - axis.ticks[0]
    largest = max(abs(axis.low), abs(axis.high))
    if largest < 1e-3 or largest >= 1e6:
        digits = max(0, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9))
        return "0" if abs(value) < step / 2 else f"{value:.{digits}e}".replace("e-0", "e-").replace("e+0", "e")
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}"
