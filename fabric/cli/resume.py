"""`fabric resume`: continues a run that was stopped, to the same bits as if it had not been."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from fabric.cli import run


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
) -> None:
    """Continues the newest valid checkpoint of a run; the result is the one an uninterrupted run writes."""
    run.resume(run_dir, output, metrics, threads)
