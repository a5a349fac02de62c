"""What `train` and `resume` show while they run: a bar, the numbers behind it, and how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fabric import interrupts
from fabric.cli import console, ranks, signals
from fabric.errors import InterruptedRunError, StoppedError, UsageError

if TYPE_CHECKING:
    from fabric.training.settings import TrainReport, TrainSettings

BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}], {desc}"
NARROW_BAR = "{n:.0f}/{total} {remaining} left {desc}"  # all numbers within 80 columns, and no bar
WIDE = 110


class TerminalUI:
    """Draws a run on stderr; see fabric.training.settings.TrainUI."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.narrow = False
        self.peak = 1.0
        self.flops = (0.0, 0.0)
        self.steps = 0.0
        self.drawn = 0.0

    def start(self, info: dict[str, Any]) -> None:
        """Says what will run, and opens the bar."""
        device = info["device"]
        console.note(
            f"{info['rows']:,} rows, {info['tokens']:,} tokens, {info['steps']:,} steps; "
            f"{info['trained_params']:,} parameters train on {device['name']} ({device['isa']}, {info['precision']}), "
            f"{console.human_bytes(info['planned_bytes'])} planned; run directory {info['run_dir']}"
        )
        signals.acknowledge("stopping: finished steps are kept, this one is dropped; once more stops at once")
        if not console.wants_bar():
            return
        from tqdm import tqdm

        from fabric.devices.profiles import DEFAULT

        self.flops = info["flops_per_token"], info["flops_per_trained"]
        probe = DEFAULT.open(device["opened"], device["threads"])
        self.peak = probe.peak(info["precision"] if info["precision"] == "f32" or device["bf16"] else "f32", 0.2)
        probe.close()
        self.steps = float(info["from_step"])
        self.narrow = os.get_terminal_size(sys.stderr.fileno()).columns < WIDE
        self.bar = tqdm(
            total=info["steps"], initial=self.steps, bar_format=NARROW_BAR if self.narrow else BAR, file=sys.stderr,
            dynamic_ncols=True, leave=False,
        )  # fmt: skip

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self.bar is not None and not signals.hung_up():
            self.bar.clear()
        with contextlib.suppress(OSError):  # the terminal may be gone
            console.note(text)

    def progress(self, fraction: float) -> None:
        """Moves the bar inside a step."""
        if self.bar is not None and not signals.hung_up():
            self.bar.n = self.steps + min(fraction, 0.999)
            if time.monotonic() - self.drawn > 0.2:
                self.bar.refresh()
                self.drawn = time.monotonic()

    def step(self, metrics: dict[str, Any]) -> None:
        """Shows the numbers of a finished step."""
        self.steps = float(metrics["step"])
        if self.bar is None or signals.hung_up():
            return
        work = metrics["tokens"] * self.flops[0] + metrics["trained_tokens"] * self.flops[1]
        parts = [
            f"loss {metrics['loss']:.3f}",
            f"lr {metrics['lr']:.1e}".replace("e-0", "e-"),
            f"{metrics['tokens_per_s']:.0f} tokens/s",
            f"{100 * work / metrics['seconds'] / self.peak:.0f} % of peak",
            console.human_bytes(metrics["peak_bytes"]),
        ]
        self.bar.n = self.steps
        self.bar.set_description_str((" " if self.narrow else ", ").join(parts))

    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM came."""
        return interrupts.asked()

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None and not signals.hung_up():
            self.bar.close()
        self.bar = None


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
    run_dir: str, output: str | None, metrics: str | None, threads: int | None, epochs: float | None, steps: int | None
) -> None:
    """Runs `resume` under a bar and reports."""
    from fabric.training.resume import resume as run

    with ranks.joined() as team, stoppable() as ui:
        if team and team.rank:
            ranks.follow(team)
            return
        report = run(run_dir, ui, output, metrics, threads, epochs, steps, team)
    tell(report)


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
    """Says what a finished run came to."""
    validation = f", validation {report.val_loss:.4f}" if report.val_loss is not None else ""
    sizes = f"{report.kind} {console.human_bytes(report.output_bytes)}, peak {console.human_bytes(report.peak_bytes)}"
    console.report(
        dataclasses.asdict(report),
        f"{report.steps:,} steps in {report.seconds:.1f} s, {report.tokens_per_s:.0f} tokens/s: loss {report.loss:.4f}"
        f"{validation}; {sizes}",
        report.output,
        report.metrics,
    )
