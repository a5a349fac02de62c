"""The curves of a report: what a column of several runs looks like by step, epoch, tokens and time, and a drawing of
it that needs no script. The page's script draws the same curves anew, wherever it zooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fabric.plotting.plot import EXACT, TITLES
from fabric.plotting.runs import Run, Series
from fabric.plotting.scales import Axis, nice_axis, smoothed, thinned, tick_label
from fabric.reporting.tables import Table, cell, number

AXES = {"step": "optimizer step", "epoch": "epoch", "tokens": "tokens", "seconds": "training time (s)"}
COLORS = 6  # of lines, in page.css; then they come again, dashed
FIRST = ("loss", "lr", "grad_norm", "tokens_per_s", "peak_bytes")
_AXIS_COLUMNS = {"epoch", "tokens", "trained_tokens", "seconds"}
_MOST_CHARTS = 40
_PARTS = 400  # of a curve, of each of which the first, last, least and largest value are kept
_MOST_ROWS = 200  # of the table behind a chart
WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 44  # margins, as in page.js

Kind = Literal["raw", "line", "dots"]


@dataclass(frozen=True)
class Curve:
    """One line, or the points, of one run: `x` by each axis that the run knows."""

    run: int
    kind: Kind
    x: dict[str, list[float]]
    y: list[float]

    def to_json(self) -> dict[str, Any]:
        """With as many digits as a picture shows."""
        rounded = {name: [_short(value) for value in values] for name, values in self.x.items()}
        return {"run": self.run, "kind": self.kind, "x": rounded, "y": [_short(value) for value in self.y]}


@dataclass(frozen=True)
class Chart:
    """One column of all runs."""

    id: str
    column: str
    title: str
    curves: list[Curve]
    table: Table

    def to_json(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {"id": self.id, "title": self.title, "curves": [curve.to_json() for curve in self.curves]}


@dataclass(frozen=True)
class Mark:
    """A tick: where it lies, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Drawn:
    """A chart by step, in units of the drawing."""

    x: list[Mark]
    y: list[Mark]
    lines: list[tuple[str, str]]
    """Classes and points."""
    dots: list[tuple[str, float, float]]


def charts(runs: Sequence[Run]) -> tuple[list[Chart], list[str]]:
    """A chart a column, the usual ones first; and the columns that are too many to be drawn."""
    columns = dict.fromkeys(name for run in runs for name in run.columns if name not in _AXIS_COLUMNS)
    columns = dict.fromkeys(n for n in columns if not (n.startswith("val_") and n.removeprefix("val_") in columns))
    names = [name for name in FIRST if name in columns] + [name for name in columns if name not in FIRST]
    return [_chart(f"chart-{i}", name, runs) for i, name in enumerate(names[:_MOST_CHARTS])], names[_MOST_CHARTS:]


def _chart(id: str, column: str, runs: Sequence[Run]) -> Chart:
    curves, runs = [], [_in_mib(run, column) for run in runs]
    for index, run in enumerate(runs):
        for name in (column, f"val_{column}"):
            if name not in run.columns:
                continue
            series = run.columns[name]
            line = series if name != column or column in EXACT else smoothed(series, None)
            if line is not series:
                curves.append(_curve(index, "raw", series, run))
            curves.append(_curve(index, "line" if name == column else "dots", line, run))
    return Chart(id, column, title(column), curves, _table(id, column, runs))


def title(column: str) -> str:
    """What a column is called; a stranger's may be called anything."""
    return TITLES.get(column, cell(column)).replace("(bytes)", "(MiB)")


def _in_mib(run: Run, column: str) -> Run:
    """A run whose column of bytes is one of MiB."""
    if "(bytes)" not in TITLES.get(column, "") or column not in run.columns:
        return run
    bytes = run.columns[column]
    mib = Series(bytes.steps, [value / (1 << 20) for value in bytes.values])
    return replace(run, columns={**run.columns, column: mib})


def _curve(index: int, kind: Kind, series: Series, run: Run) -> Curve:
    seen = thinned(series, _PARTS)
    return Curve(index, kind, _by_axis(seen.steps, run), seen.values)


def _by_axis(steps: list[float], run: Run) -> dict[str, list[float]]:
    """Where steps lie on each axis: tokens and seconds are those of all steps before, added up."""
    found = {"step": steps}
    for axis, column in (("epoch", "epoch"), ("tokens", "tokens"), ("seconds", "seconds")):
        if column in run.columns:
            known = run.columns[column]
            values = np.array(known.values) if axis == "epoch" else np.cumsum(known.values)
            found[axis] = np.interp(steps, known.steps, values).tolist()
    return found


def _table(id: str, column: str, runs: Sequence[Run]) -> Table:
    """The numbers behind a chart, at so many steps as a person reads; those with a validation first of all."""
    named = [(run, name) for run in runs for name in (column, f"val_{column}") if name in run.columns]
    values = [dict(zip(run.columns[name].steps, run.columns[name].values, strict=True)) for run, name in named]
    wanted = {step for (_, name), known in zip(named, values, strict=True) if name != column for step in known}
    wanted = set(_evenly(sorted(wanted), _MOST_ROWS // 2))
    every = sorted({step for known in values for step in known})
    steps = sorted(wanted.union(_evenly(every, _MOST_ROWS - len(wanted))))
    head = ["step", *(_heading(run, name, column, len(runs)) for run, name in named)]
    rows = [[f"{step:.15g}", *(number(known.get(step)) for known in values)] for step in steps]
    note = f"{len(steps):,} of {len(every):,} steps" if len(steps) < len(every) else ""
    return Table(f"{id}-table", f"Data: {title(column)}", head, rows, note, folded=True)


def _heading(run: Run, name: str, column: str, count: int) -> str:
    what = "validation" if name != column else cell(column)
    return f"{cell(run.label)}: {what}" if count > 1 else what


def _evenly(values: list[float], count: int) -> list[float]:
    """At most `count` of them, equally far apart, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def draw(chart: Chart) -> Drawn:
    """The chart by step, from its least to its largest value."""
    steps = [step for curve in chart.curves for step in curve.x["step"]]
    values = [value for curve in chart.curves for value in curve.y]
    x = nice_axis(min(steps), max(steps), 6, least=1.0)
    y = nice_axis(min(values), max(values), 5)

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * x.part(step), TOP + (HEIGHT - TOP - BOTTOM) * (1 - y.part(value))

    drawn = Drawn(_marks(x, lambda t: place(t, y.low)[0]), _marks(y, lambda t: place(x.low, t)[1]), [], [])
    for curve in chart.curves:
        points = [place(*point) for point in zip(curve.x["step"], curve.y, strict=True)]
        if curve.kind != "dots":
            points = points if len(points) > 1 else points * 2
            drawn.lines.append((classes(curve), " ".join(f"{px:.1f},{py:.1f}" for px, py in points)))
        else:
            drawn.dots.extend((classes(curve), round(px, 1), round(py, 1)) for px, py in points)
    return drawn


def _marks(axis: Axis, at: Any) -> list[Mark]:
    return [Mark(round(at(tick), 1), tick_label(tick, axis)) for tick in axis.ticks]


def classes(curve: Curve) -> str:
    """Of a line or a point: its kind, the run's colour and its dashes."""
    return f"{curve.kind} c{curve.run % COLORS} d{curve.run // COLORS % 4}"


def _short(value: float) -> float:
    return float(f"{value:.6g}")
