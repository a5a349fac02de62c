"""Pictures of training runs: a PNG, an SVG or a drawing for the terminal. Leans on the other files here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError
from fabric.plotting.raster import Color, Picture, text_width
from fabric.plotting.runs import Run, Series
from fabric.plotting.scales import Axis, nice_axis, smoothed, thinned, tick_label
from fabric.plotting.vector import Drawing
from fabric.printable import one_line

PALETTE: tuple[Color, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
INK: Color = (40, 40, 40)
GRID: Color = (228, 228, 228)
MARKS = "*+x#%@"  # of runs, where no colours tell their lines apart
EXACT = {"lr", "peak_bytes", "epoch"}  # columns without noise, never smoothed
TITLES = {
    "loss": "loss (nats per trained token)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    "peak_bytes": "peak memory (bytes)",
}


@dataclass(frozen=True)
class PlotSettings:
    """`fabric plot RUN.jsonl ... --columns loss,lr`."""

    columns: tuple[str, ...] = ("loss",)
    smooth: float | None = None
    """Width of the smoothing kernel in steps; None: a fortieth of the run; 0: none."""
    title: str = ""
    width: int = 1200
    """Of a picture in pixels, of a terminal drawing in cells."""
    height: int = 720


def summary(runs: Sequence[Run], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Of each run and column (and its validation): the first, last and least value. Raises DataError."""
    check_columns(runs, columns)
    told: list[dict[str, Any]] = []
    for run in runs:
        values = {n: s.values for c in columns for n, s in run.columns.items() if n in (c, f"val_{c}")}
        ends = {n: {"first": v[0], "last": v[-1], "least": min(v)} for n, v in values.items()}
        told.append({"name": run.name, "steps": max(s.steps[-1] for s in run.columns.values()), **ends})
    return told


def check_columns(runs: Sequence[Run], columns: Sequence[str]) -> None:
    """DataError for a column that no run has."""
    for column in columns:
        if not any(column in run.columns for run in runs):
            there = ", ".join(sorted({name for run in runs for name in run.columns}))
            raise DataError(f"{runs[0].name}: no column {column!r}; there are {there}")


def _span(runs: Sequence[Run], column: str) -> tuple[Axis, Axis]:
    """Axes of steps and values for a panel; that of values begins at 0 where they come near it."""
    names = (column, f"val_{column}")
    series = [run.columns[name] for run in runs for name in names if name in run.columns]
    steps = [s for one in series for s in one.steps]
    values = np.array([v for one in series for v in one.values])
    low, high = float(values.min()), float(values.max())
    if low > 0 and low < 0.2 * high:
        low = 0.0
    return nice_axis(min(steps), max(steps), 8, least=1.0), nice_axis(low, high, 5)


def draw_png(settings: PlotSettings, runs: Sequence[Run]) -> bytes:
    """The runs as a PNG, a panel a column. Raises DataError."""
    picture = Picture(settings.width, settings.height)
    _draw(picture, settings, runs)
    return picture.png()


def draw_svg(settings: PlotSettings, runs: Sequence[Run]) -> bytes:
    """The runs as an SVG, a panel a column. Raises DataError."""
    drawing = Drawing(settings.width, settings.height)
    _draw(drawing, settings, runs)
    return drawing.svg()


def _draw(picture: Picture | Drawing, settings: PlotSettings, runs: Sequence[Run]) -> None:
    check_columns(runs, settings.columns)
    size = max(9.0, settings.width / 88)
    top = size * (4.0 if settings.title else 1.9)
    if settings.title:
        picture.text(settings.width / 2, size * 2.1, settings.title, size * 1.15, INK, 0.5)
    entries = _entries(runs, settings.columns)
    top += _legend(picture, entries, size * 7.2, settings.width - size * 2.0, top, size) + size * 1.2
    weights = [2.2 if i == 0 else 1.0 for i in range(len(settings.columns))]
    room = settings.height - top - size * 4.6 - size * 1.6 * (len(weights) - 1)
    for i, column in enumerate(settings.columns):
        height = room * weights[i] / sum(weights)
        _panel(picture, runs, column, settings, (top, height, size), i == len(weights) - 1)
        top += height + size * 1.6


def _panel(
    picture: Picture | Drawing,
    runs: Sequence[Run],
    column: str,
    settings: PlotSettings,
    place: tuple[float, float, float],
    last: bool,
) -> None:
    top, height, size = place
    left, right = size * 7.2, settings.width - size * 2.0
    x_axis, y_axis = _span(runs, column)

    def at(step: float, value: float) -> tuple[float, float]:
        return left + (right - left) * _step_part(x_axis, step), top + height * (1 - y_axis.part(value))

    for tick in y_axis.ticks:
        y = round(at(x_axis.low, tick)[1])
        picture.rectangle(left, y, right - left, 1, GRID)
        picture.text(left - size * 0.7, y + size * 0.45, tick_label(tick, y_axis), size * 0.9, INK, 1.0)
    for tick in x_axis.ticks:
        x = round(at(tick, y_axis.low)[0])
        picture.rectangle(x, top + height, 1, size * 0.45, INK)
        if last:
            picture.text(x, top + height + size * 1.9, tick_label(tick, x_axis), size * 0.9, INK, 0.5)
    picture.rectangle(left, top + height, right - left, 1, INK)
    picture.rectangle(left, top, 1, height, INK)
    if last:
        picture.text((left + right) / 2, top + height + size * 3.7, "optimizer step", size, INK, 0.5)
    name = TITLES.get(column, column)
    if text_width(name, size) > height:
        name = column
    picture.text(size * 1.9, top + height / 2, name, size, INK, 0.5, up=True)
    for run, color in zip(runs, _colors(len(runs)), strict=True):
        if column in run.columns:
            raw = thinned(run.columns[column], settings.width)
            line = smoothed(run.columns[column], 0 if column in EXACT else settings.smooth)
            line = raw if line is run.columns[column] else thinned(line, settings.width)
            if line is not raw:
                picture.polyline([at(*p) for p in zip(raw.steps, raw.values, strict=True)], color, size * 0.11, 0.3)
            points = [at(*p) for p in zip(line.steps, line.values, strict=True)]
            picture.polyline(points if len(points) > 1 else points * 2, color, size * 0.2)
        if f"val_{column}" in run.columns:
            val = thinned(run.columns[f"val_{column}"], settings.width)
            color = color if len(runs) > 1 else PALETTE[1]
            points = [at(*p) for p in zip(val.steps, val.values, strict=True)]
            picture.polyline(points if len(points) > 1 else points * 2, color, size * 0.12, 0.6)
            for radius, ink in ((0.46, (255, 255, 255)), (0.36, color)):
                for point in points:
                    picture.dot(*point, size * radius, ink)


def _step_part(axis: Axis, step: float) -> float:
    return 0.012 + 0.976 * axis.part(step)


def _colors(count: int) -> list[Color]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _entries(runs: Sequence[Run], columns: Sequence[str]) -> list[tuple[str, Color, bool]]:
    """What lines and dots are: name, color, whether dotted."""
    names = [run.label for run in runs] if len(runs) > 1 else ["training"]
    entries = [(name, color, False) for name, color in zip(names, _colors(len(runs)), strict=True)]
    if any(f"val_{column}" in run.columns for run in runs for column in columns):
        entries.append(("validation", INK if len(runs) > 1 else PALETTE[1], True))
    return entries


def _legend(
    picture: Picture | Drawing, entries: Sequence[tuple[str, Color, bool]], left: float, right: float, y: float,
    size: float,
) -> float:  # fmt: skip
    """Names in lines that end at `right`, the first on the baseline y; how far down the last one is."""
    lines: list[list[tuple[str, Color, bool]]] = [[]]
    for entry in entries:
        if lines[-1] and sum(_width(other, size) for other in [*lines[-1], entry]) > right - left:
            lines.append([])
        lines[-1].append(entry)
    for i, line in enumerate(lines):
        x, base = right - sum(_width(entry, size) for entry in line), y + 1.9 * size * i
        for name, color, dotted in line:
            middle = base - size * 0.45
            pen = size * (0.12 if dotted else 0.2)
            picture.polyline([(x + size, middle), (x + size * 3.0, middle)], color, pen)
            if dotted:
                picture.dot(x + size * 2.0, middle, size * 0.36, color)
            picture.text(x + size * 3.7, base, name, size, INK)
            x += _width((name, color, dotted), size)
    return 1.9 * size * (len(lines) - 1)


def _width(entry: tuple[str, Color, bool], size: float) -> float:
    return text_width(entry[0], size) + size * 5.2


def draw_text(settings: PlotSettings, runs: Sequence[Run], ascii_only: bool = False, color: bool = False) -> str:
    """The runs for a terminal: braille dots, or plain characters; a panel a column. Raises DataError."""
    check_columns(runs, settings.columns)
    rows = max(6, settings.height // len(settings.columns) - 3)
    panels = [_text_panel(runs, column, settings, rows, ascii_only, color) for column in settings.columns]
    return "\n\n".join(([one_line(settings.title)] if settings.title else []) + panels)


def _text_panel(
    runs: Sequence[Run], column: str, settings: PlotSettings, rows: int, ascii_only: bool, color: bool
) -> str:
    x_axis, y_axis = _span(runs, column)
    parts = len(y_axis.ticks) - 1
    rows = max(1, (rows - 1) // parts) * parts + 1  # ticks lie on lines, equally far apart
    plain = ascii_only or (len(runs) > 1 and not color)
    labels = [tick_label(tick, y_axis) for tick in y_axis.ticks]
    margin = max(map(len, labels)) + 2
    cols = max(20, settings.width - margin)
    fine_x, fine_y = (1, 1) if plain else (2, 4)
    dots = np.zeros((rows * fine_y, cols * fine_x), bool)
    owner = np.full((rows, cols), -1)
    for index, run in enumerate(runs):
        if column in run.columns:
            line = smoothed(run.columns[column], 0 if column in EXACT else settings.smooth)
            _trace(dots, owner, thinned(line, cols * fine_x), x_axis, y_axis, index, (fine_x, fine_y))
    cells = []
    for r in range(rows):
        cells.append([_cell(dots, owner, r, c, plain, color and len(runs) > 1) for c in range(cols)])
    for index, run in enumerate(runs):
        val = run.columns.get(f"val_{column}", Series())
        for step, value in zip(val.steps, val.values, strict=True):
            r, c = round((rows - 1) * (1 - y_axis.part(value))), round((cols - 1) * x_axis.part(step))
            mark = "o" if ascii_only else "●"
            cells[r][c] = _paint(mark, index, color)
    lines = []
    marks = {round((rows - 1) * (1 - y_axis.part(t))): label for t, label in zip(y_axis.ticks, labels, strict=True)}
    bar, corner, dash = ("|", "+", "-") if ascii_only else ("┤", "└", "─")
    for r, row in enumerate(cells):
        edge = bar if r in marks else ("|" if ascii_only else "│")
        lines.append(f"{marks.get(r, ''):>{margin - 2}} {edge}" + "".join(row).rstrip())
    lines.append(" " * (margin - 1) + corner + dash * cols)
    first, last = tick_label(x_axis.low, x_axis), tick_label(x_axis.high, x_axis)
    lines.append(" " * margin + first + f"{'step':^{max(4, cols - len(first) - len(last))}}" + last)
    keys = [
        f"{_paint(MARKS[i % len(MARKS)] if plain else '━', i, color)} {one_line(run.label)}"
        for i, run in enumerate(runs)
    ]
    if any(f"val_{column}" in run.columns for run in runs):
        keys.append(("o" if ascii_only else "●") + " validation")
    return f"{one_line(TITLES.get(column, column))}   {'   '.join(keys)}\n" + "\n".join(lines)


def _trace(
    dots: npt.NDArray[np.bool_],
    owner: npt.NDArray[np.int64],
    line: Series,
    x_axis: Axis,
    y_axis: Axis,
    index: int,
    fine: tuple[int, int],
) -> None:
    height, width = dots.shape
    xs = [(width - 1) * x_axis.part(step) for step in line.steps]
    ys = [(height - 1) * (1 - y_axis.part(value)) for value in line.values]
    for i in range(max(1, len(xs) - 1)):
        j = min(i + 1, len(xs) - 1)
        count = int(max(abs(xs[j] - xs[i]), abs(ys[j] - ys[i]))) + 1
        for k in range(count + 1):
            x, y = round(xs[i] + (xs[j] - xs[i]) * k / count), round(ys[i] + (ys[j] - ys[i]) * k / count)
            if 0 <= x < width and 0 <= y < height:
                dots[y, x] = True
                owner[y // fine[1], x // fine[0]] = index


def _cell(dots: npt.NDArray[np.bool_], owner: npt.NDArray[np.int64], r: int, c: int, plain: bool, color: bool) -> str:
    if owner[r, c] < 0:
        return " "
    if plain:
        return _paint(MARKS[owner[r, c] % len(MARKS)], int(owner[r, c]), color)
    block = dots[r * 4 : r * 4 + 4, c * 2 : c * 2 + 2]
    bits = (0x01, 0x08, 0x02, 0x10, 0x04, 0x20, 0x40, 0x80)
    code = sum(bit for bit, on in zip(bits, block.ravel(), strict=True) if on)
    return _paint(chr(0x2800 + code), int(owner[r, c]), color)


def _paint(mark: str, index: int, color: bool) -> str:
    if not color:
        return mark
    r, g, b = PALETTE[index % len(PALETTE)]
    return f"\x1b[38;2;{r};{g};{b}m{mark}\x1b[0m"
