"""`fabric plot`: the metrics of training runs as a picture, in the terminal or as a PNG."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated

from typer import Argument, Option

from fabric.cli import console
from fabric.errors import UsageError


def command(
    metrics: Annotated[
        list[str] | None,
        Argument(metavar="METRICS", help="JSONL of `train --metrics`, one file a run; `-`: stdin", show_default=False),
    ] = None,
    output: Annotated[str | None, Option("-o", "--output", metavar="FILE", help="a PNG; `-`: stdout")] = None,
    columns: Annotated[str, Option("-c", "--columns", metavar="NAMES", help="a panel each, joined by commas")] = "loss",
    smooth: Annotated[
        float | None, Option(metavar="STEPS", min=0.0, help="0: none; default: a fortieth of the run")
    ] = None,
    title: Annotated[str, Option(metavar="TEXT", help="over the picture")] = "",
    width: Annotated[int | None, Option(metavar="N", min=40, max=8000, help="pixels of a PNG, columns of text")] = None,
    height: Annotated[int | None, Option(metavar="N", min=10, max=8000, help="pixels of a PNG, lines of text")] = None,
) -> None:
    """Draws the columns of one or several runs: raw and smoothed, with validation points beside them.

    Without -o the drawing goes to the terminal as text; with --json only the numbers of each run.
    """
    from fabric.evaluation.plot import PlotSettings, draw_png, draw_text, summary
    from fabric.files import check_streams, open_output

    sources = tuple(metrics) if metrics else (console.stdin_source(None),)
    check_streams(sources, [output])
    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    if console.flag("json"):
        if output is not None:
            raise UsageError("--json and --output exclude each other: numbers, or a picture")
        console.report({"runs": summary(sources, names)}, "", result=True)
    elif output is not None:
        settings = PlotSettings(sources, names, smooth, title, width or 1200, height or 720)
        picture = draw_png(settings)
        with open_output(output) as file:
            file.write(picture)
    else:
        room = shutil.get_terminal_size((80, 24))
        settings = PlotSettings(sources, names, smooth, title, width or room.columns, height or max(12, room.lines - 4))
        plain = os.environ.get("TERM") == "dumb" or (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
        print(draw_text(settings, ascii_only=plain, color=console.wants_color(sys.stdout)))
