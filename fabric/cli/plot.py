"""`fabric plot`: the metrics of training runs as a picture, in the terminal, as a PNG or as an SVG."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Setting, split_names
from fabric.system import draws

if TYPE_CHECKING:
    from fabric.plotting.plot import PlotSettings
    from fabric.plotting.runs import Run


def command(
    metrics: Annotated[
        tuple[str, ...],
        Setting(
            "run directories or names, or JSONL of `train --metrics`; `-`: stdin", "RUN...", path="in",
            operand=True, stdin=True, many=True,
        ),
    ] = ("-",),
    output: Annotated[str | None, Setting("a picture; `-`: stdout", "FILE", short="-o", path="out")] = None,
    svg: Annotated[bool, Setting("an SVG, not a PNG; also where FILE ends in .svg")] = False,
    columns: Annotated[
        tuple[str, ...],
        Setting(
            "columns, one panel each, such as loss,lr,grad_norm,tokens_per_s", "NAMES", short="-c", parse=split_names,
            written="loss", completes=("loss", "val_loss", "lr", "grad_norm", "tokens_per_s"),
        ),
    ] = ("loss",),
    follow: Annotated[bool, Setting("draw again as runs go on, until Ctrl-C or stdin ends", touches="task")] = False,
    smooth: Annotated[
        float | None, Setting("width of smoothing; 0: none; default: a fortieth of the run", "STEPS", low=0.0)
    ] = None,
    title: Annotated[str, Setting("title of the picture", "TEXT")] = "",
    width: Annotated[int | None, Setting("pixels of a picture, columns of text", "N", low=40, high=8000)] = None,
    height: Annotated[int | None, Setting("pixels of a picture, lines of text", "N", low=10, high=8000)] = None,
) -> None:  # fmt: skip
    """Draws the columns of one or several runs: raw and smoothed, with validation points beside them.

    Without -o the drawing goes to the terminal as text; with --json only the numbers of each run.
    """
    from fabric.cli import signals
    from fabric.files import is_stdout, is_stream
    from fabric.plotting.plot import PlotSettings, summary
    from fabric.plotting.runs import follow_runs, read_runs

    sources, names = metrics, columns
    if console.flag("json"):
        if output is not None or follow:
            raise UsageError("--json is of numbers, once: leave out --output and --follow")
        console.report({"runs": summary(read_runs(sources), names)}, "", result=True)
        return
    if follow and (not sys.stdout.isatty() if output is None else is_stdout(output)):
        raise UsageError("--follow draws again and again: to a terminal, or into a file with -o")
    if follow and len(sources) > 1 and any(map(is_stream, sources)):
        raise UsageError("--follow reads one pipe or any number of files, not both")
    seen: Iterable[list[Run]] = follow_runs(sources) if follow else [read_runs(sources)]
    try:
        for runs in seen:
            if output is not None:
                _write(output, svg, PlotSettings(names, smooth, title, width or 1200, height or 720), runs)
            else:
                room = shutil.get_terminal_size((80, 24))
                size = width or room.columns, height or max(12, room.lines - 4)
                _print(PlotSettings(names, smooth, title, *size), runs, anew=follow)
    except KeyboardInterrupt:
        if not follow or signals.number != signal.SIGINT:
            raise


def _write(output: str, svg: bool, settings: PlotSettings, runs: Sequence[Run]) -> None:
    from fabric.files import open_output
    from fabric.plotting.plot import draw_png, draw_svg

    svg = svg or output.lower().endswith(".svg")
    picture = (draw_svg if svg else draw_png)(settings, runs)
    with open_output(output, text=svg) as file:
        file.write(picture)


def _print(settings: PlotSettings, runs: Sequence[Run], anew: bool) -> None:
    from fabric.plotting.plot import draw_text

    plain = os.environ.get("TERM") == "dumb" or (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    drawing = draw_text(settings, runs, ascii_only=plain, color=console.wants_color(sys.stdout))
    print(("\x1b[H\x1b[2J" if anew and draws(sys.stdout) else "") + drawing, flush=True)
