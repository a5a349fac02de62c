"""`fabric resume`: continues a run that was stopped, to the same bits as if it had not been."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fabric.errors import UsageError
from fabric.settings import METRICS, THREADS, Setting
from fabric.training.settings import EPOCHS, OUTPUT, STEPS, TRACK

HELD = "; default: as the run began"


def command(
    run_dir: Annotated[
        str | None,
        Setting(
            "a run directory, or a name of `fabric runs`; default: the newest unfinished one",
            "RUN",
            path="in",
            operand=True,
        ),
    ] = None,
    output: Annotated[str | None, replace(OUTPUT, help=f"the adapter or model{HELD}")] = None,
    metrics: Annotated[str | None, replace(METRICS, help=f"{METRICS.help}{HELD}")] = None,
    track: Annotated[tuple[str, ...] | None, replace(TRACK, help=f"{TRACK.help}{HELD}", written=None)] = None,
    threads: Annotated[int | None, THREADS] = None,
    epochs: Annotated[
        float | None, replace(EPOCHS, help="go on to X passes over the rows in all", touches="task")
    ] = None,
    steps: Annotated[int | None, replace(STEPS, help="go on to N steps in all", touches="task")] = None,
) -> None:
    """Continues a run from its newest valid checkpoint; the result has the same bits as that of an uninterrupted run.

    With --epochs or --steps, the run continues to a later end, even if it has finished.
    """
    from fabric.cli import run

    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps both say where the run ends: leave one out")
    run.resume(run_dir, output, metrics, threads, epochs, steps, track)
