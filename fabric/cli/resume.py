"""`fabric resume`: continues a run that was stopped, to the same bits as if it had not been."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from fabric.errors import UsageError


def command(
    run_dir: Annotated[str, Argument(metavar="RUN_DIR", help="what `train` called its run directory")],
    output: Annotated[
        str | None, Option("-o", "--output", metavar="FILE", help="the adapter or model; default: as `train` was told")
    ] = None,
    metrics: Annotated[
        str | None, Option(metavar="FILE", help="JSONL, one object a step; default: as `train` was told")
    ] = None,
    threads: Annotated[
        int | None, Option("--threads", metavar="N", min=0, max=512, help="CPU threads; 0: one a core")
    ] = None,
    epochs: Annotated[
        float | None, Option(metavar="X", min=0.0, help="go on to so many passes over the rows, all in all")
    ] = None,
    steps: Annotated[int | None, Option(metavar="N", min=1, help="go on to so many steps, all in all")] = None,
) -> None:
    """Continues the newest valid checkpoint of a run; the result is the one an uninterrupted run writes.

    With --epochs or --steps a run, also one that has ended, goes on to a later end.
    """
    from fabric.cli import run

    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps both say where the run ends: leave one out")
    run.resume(run_dir, output, metrics, threads, epochs, steps)
