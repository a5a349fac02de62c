"""What `train` and `resume` show while they run: one bar on a terminal, lines elsewhere. See TrainUI."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from fabric import interrupts
from fabric.cli import console, signals

BAR = "{percentage:3.0f}%|{bar}| {steps}/{total} [{elapsed}<{remaining}]{desc}"
NARROW_BAR = "{steps}/{total} {remaining} left{desc}"  # all numbers within 80 columns, and no bar
WIDE = 110
DRAW_S = 0.2  # between two drawings of the bar
LINE_S = 30.0  # between two lines where no bar is drawn
STATES = {"step": "", "validation": "validating", "samples": "answering samples"}
MOST_SAMPLE_CHARS = 60


class TerminalUI:
    """Draws a run on stderr. The bar counts steps: it stands still while a validation or samples are computed."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.narrow = False
        self.peak = 1.0
        self.flops = (0.0, 0.0)
        self.total = self.first = self.steps = 0
        self.place = 0.0  # steps, and the part of the one that runs
        self.began = self.drawn = self.told = 0.0
        self.state = ""
        self.metrics: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}

    def start(self, info: dict[str, Any]) -> None:
        """Says what will run, and opens the bar."""
        device = info["device"]
        console.note(
            f"{info['rows']:,} rows, {info['tokens']:,} tokens, {info['steps']:,} steps; "
            f"{info['trained_params']:,} parameters train on {device['name']} ({device['isa']}, {info['precision']}), "
            f"{console.human_bytes(info['planned_bytes'])} planned; run directory {info['run_dir']}"
        )
        stopping = "stopping: finished steps are kept, this one is dropped; once more stops at once"
        signals.acknowledge(console.speaker() + stopping)
        self.total, self.first = info["steps"], info["from_step"]
        self.steps, self.place = self.first, float(self.first)
        self.began = self.told = time.monotonic()
        if not console.wants_bar():
            return
        from tqdm import tqdm

        from fabric.devices.profiles import DEFAULT

        class Bar(tqdm):  # type: ignore[misc]
            """One that counts the steps that are done."""

            @property
            def format_dict(self) -> Any:
                return {**super().format_dict, "steps": int(self.n)}

        self.flops = info["flops_per_token"], info["flops_per_trained"]
        probe = DEFAULT.open(device["opened"], device["threads"])
        self.peak = probe.peak(info["precision"] if info["precision"] == "f32" or device["bf16"] else "f32", 0.2)
        probe.close()
        self.narrow = os.get_terminal_size(sys.stderr.fileno()).columns < WIDE
        look = console.speaker() + (NARROW_BAR if self.narrow else BAR)
        self.bar = Bar(
            total=self.total, initial=self.place, bar_format=look, file=sys.stderr, dynamic_ncols=True, leave=False,
        )  # fmt: skip

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self.bar is not None and not signals.hung_up():
            self.bar.clear()
        with contextlib.suppress(OSError):  # the terminal may be gone
            console.note(text)

    def progress(self, what: str, fraction: float) -> None:
        """Moves the bar inside a step, or names what is done between two."""
        if what == "step":
            self.place = max(self.place, self.steps + min(fraction, 0.999))
            state = ""
        else:
            state = f"{STATES[what]} {100 * fraction:.0f} %"
        now = time.monotonic()
        if self.bar is None:
            self.state = state
            if now - self.told > LINE_S:
                self._line(state)
        elif not signals.hung_up() and (now - self.drawn > DRAW_S or (state and not self.state)):
            self.state = state
            self._draw()

    def step(self, metrics: dict[str, Any]) -> None:
        """Shows the numbers of a finished step."""
        self.steps, self.metrics, self.state = metrics["step"], metrics, ""
        self.place = max(self.place, float(self.steps))
        if self.bar is None:
            if time.monotonic() - self.told > LINE_S:
                self._line()
        elif not signals.hung_up() and (time.monotonic() - self.drawn > DRAW_S or self.steps == self.total):
            self._draw()

    def validated(self, result: dict[str, Any]) -> None:
        """Says what a validation came to, and whether it is the best one."""
        self.validation, self.state, self.told = result, "", time.monotonic()
        best = "the best so far"
        if result["best_step"] != result["step"]:
            best = f"best {result['best_loss']:.4f} at step {result['best_step']}"
        loss = f"loss {self.metrics['loss']:.4f}, " if self.metrics.get("step") == result["step"] else ""
        self.message(f"step {result['step']} of {self.total}: {loss}validation {result['val_loss']:.4f} ({best})")

    def sampled(self, samples: list[dict[str, Any]]) -> None:
        """A line for each answer."""
        self.state, self.told = "", time.monotonic()
        for one in samples:
            wanted = f" (expected: {_short(one['expected'])})" if one.get("expected") is not None else ""
            self.message(f"step {one['step']}: {_short(one['prompt'])} -> {_short(one['answer'])}{wanted}")

    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM came."""
        return interrupts.asked()

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None and not signals.hung_up():
            self.bar.close()
        self.bar = None

    def _draw(self) -> None:
        self.bar.n, self.drawn = self.place, time.monotonic()
        between = " " if self.narrow else ", "
        self.bar.set_description_str("".join(between + part for part in self._numbers()))

    def _line(self, state: str = "") -> None:
        """A line of a run that nobody watches, such as one in a log."""
        self.told = time.monotonic()
        done = self.place - self.first
        left = (self.told - self.began) / done * (self.total - self.place) if done else 0.0
        parts = self._numbers() + ([f"{console.human_seconds(left)} left"] if left else []) + ([state] if state else [])
        percent = f"{100 * self.place / self.total:.0f} %"
        self.message(f"step {self.steps} of {self.total} ({percent}){': ' if parts else ''}{', '.join(parts)}")

    def _numbers(self) -> list[str]:
        """What is known of the last step and the last validation."""
        m, v = self.metrics, self.validation
        if not m:
            return [self.state] if self.state and self.bar is not None else []
        parts = [f"loss {m['loss']:.3f}", f"lr {m['lr']:.1e}".replace("e-0", "e-"), f"{m['tokens_per_s']:.0f} tokens/s"]
        if self.bar is not None:
            work = m["tokens"] * self.flops[0] + m["trained_tokens"] * self.flops[1]
            parts.append(f"{100 * work / m['seconds'] / self.peak:.0f} % of peak")
        parts.append(console.human_bytes(m["peak_bytes"]))
        if self.bar is None:
            return parts
        if self.state:  # in place of the speed, which is that of training
            return [parts[0], self.state]
        if v:
            parts[1:2] = [f"validation {v['val_loss']:.3f}", f"best {v['best_loss']:.3f}"]
            parts = parts[:4] if self.narrow else parts
        return parts


def _short(text: str) -> str:
    """A text on a line of its own, and not all of a long one."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_SAMPLE_CHARS else f"{line[: MOST_SAMPLE_CHARS - 1]}…"
