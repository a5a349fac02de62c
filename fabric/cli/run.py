"""Runs `train` and `resume` for a person: under a bar, and with a last word on what was written and what comes next."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fabric.cli import console, ranks, signals
from fabric.cli.progress import TerminalUI
from fabric.errors import InterruptedRunError, StoppedError, UsageError
from fabric.files import is_stream, shown, writes_straight
from fabric.system import quoted

if TYPE_CHECKING:
    from fabric.training.settings import TrainReport, TrainSettings

WHAT = {"stopped": "was stopped", "failed": "failed"}


@contextmanager
def stoppable() -> Iterator[TerminalUI]:
    """A UI whose run answers signals: it keeps its finished steps, and says how to go on."""
    ui = TerminalUI()
    try:
        yield ui
    except StoppedError as error:
        if signals.number == signal.SIGINT:
            raise InterruptedRunError(str(error)) from None
        raise
    finally:
        ui.close()


def train(settings: TrainSettings) -> None:
    """Runs `train` under a bar and reports."""
    from fabric.training.run import train as run

    with ranks.joined() as team, stoppable() as ui:
        if team and team.rank:
            ranks.follow(team)
            return
        report = run(settings, ui, team)
    tell(report)


def resume(
    run_dir: str | None,
    output: str | None,
    metrics: str | None,
    threads: int | None,
    epochs: float | None,
    steps: int | None,
    track: tuple[str, ...] | None,
) -> None:
    """Runs `resume` under a bar and reports."""
    from fabric.training.resume import resume as run

    with ranks.joined() as team, stoppable() as ui:
        if team and team.rank:
            ranks.follow(team)
            return
        report = run(run_dir or _newest(), ui, output, metrics, threads, epochs, steps, team, track)
    tell(report)


def _newest() -> str:
    """The directory of the newest unfinished run in .fabric/runs, which is named."""
    from fabric.runs.listing import newest_unfinished

    found = newest_unfinished()
    of = f" of {found.steps}" if found.steps is not None else ""
    why = f": {found.error}" if found.error else ""
    console.note(f"going on with {found.path}, which {WHAT[found.state]} after step {found.step}{of}{why}")
    return found.path


def plan(settings: TrainSettings) -> None:
    """Says what `train` would do and take."""
    from fabric.training.run import plan_run

    if ranks.launch().size > 1:
        raise UsageError("--dry-run plans for one process: start it without a launcher")
    values = plan_run(settings)
    for line in values["notes"]:
        console.note(line)
    device = values["device"]
    threads = f", {device['threads']} threads" if device["threads"] else ""
    rows = [
        ["settings", ", ".join(f"{name} {value:g}" for name, value in values["settings"].items())],
        ["rows", f"{values['rows']:,}"],
        ["validation rows", f"{values['val_rows']:,}"],
        ["tokens an epoch", f"{values['tokens']:,}, of which {values['trained_tokens']:,} train"],
        ["optimizer steps", f"{values['steps']:,}"],
        ["parameters that train", f"{values['trained_params']:,}"],
        ["micro-batch", f"{values['micro_batch_tokens']:,} tokens in {values['precision']}"],
        ["memory to allocate", console.human_bytes(values["planned_bytes"])],
        *([f"  {name.replace('_', ' ')}", console.human_bytes(n)] for name, n in values["memory"].items()),
        ["frozen weights", console.weights_kept(values["weights"], values["memory"]["decoded_weights"])],
        *([["uploaded", console.human_bytes(values["uploaded_bytes"])]] if values["uploaded_bytes"] else []),
        ["mapped model file", console.human_bytes(values["model_bytes"])],
        ["peak of the process", f"{console.human_bytes(values['peak_bytes'])}, the mapped file included"],
        ["time, by one step", f"{console.human_seconds(values['seconds'])}, {values['tokens_per_s']:,.0f} tokens/s"],
        ["device", f"{device['name']} ({device['isa']}{threads})"],
    ]
    console.report(values, console.table(rows, "<<"), result=True)


def tell(report: TrainReport) -> None:
    """Says what a finished run came to, where that is, and what to do with it."""
    validation = f", validation {report.val_loss:.4f}" if report.val_loss is not None else ""
    best = f" (of step {report.best_step})" if report.best_step else ""
    steps = f"{report.steps:,} step{'s' * (report.steps != 1)} in {console.human_seconds(report.seconds)}"
    lines = [
        f"{steps}, {report.tokens_per_s:.0f} tokens/s: loss {report.loss:.4f}{validation}{best}; "
        f"peak {console.human_bytes(report.peak_bytes)}",
        f"wrote the {report.kind} ({console.human_bytes(report.output_bytes)}) to {shown(report.output, 'stdout')}; "
        f"run directory {report.run_dir}",
        *_next(report),
    ]
    console.report(dataclasses.asdict(report), "\n".join(lines), report.output, report.metrics)


def _next(report: TrainReport) -> list[str]:
    """Lines to type, where the result is a file of its own."""
    if is_stream(report.model) or writes_straight(report.output):
        return []
    model, output = quoted(report.model), quoted(report.output)
    prompt = "--chat" if report.chat else "--raw --prompt TEXT"
    if report.kind == "adapter":
        used, served = f"-m {model} -a {output}", f"-m {model} --lora {output}"
    else:
        used = served = f"-m {output}"
    return [f"try it:    fabric generate {used} {prompt}", f"serve it:  llama-server {served}"]
