"""`resume`: a run goes on from its newest checkpoint, to the end that it had or to a later one.

What run.json says is checked like any input: a directory may come from a stranger.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fabric.distributed.ranks import Ranks
from fabric.errors import DataError, MissingInputError, StoppedError, UsageError
from fabric.files import STDIO, check_streams, is_stream
from fabric.interrupts import Interrupted
from fabric.notices import notice
from fabric.runs.directory import KEPT, RUN, lock_run, place_of, read_run, write_run
from fabric.runs.listing import find_run, is_run, no_run
from fabric.system import quoted
from fabric.tracking.trackers import check_trackers
from fabric.training.check import check_settings
from fabric.training.checkpoint import Checkpoint, newest_checkpoint
from fabric.training.identity import Inputs
from fabric.training.loop import Spans, rate_of, total_steps
from fabric.training.run import Setup, check_writable, kind_of, place_of_result, run_on, set_up
from fabric.training.settings import RunSettings, TrainReport, TrainUI


def resume(
    run_dir: str,
    ui: TrainUI,
    output: str | None = None,
    metrics: str | None = None,
    threads: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    ranks: Ranks | None = None,
    track: Sequence[str] | None = None,
) -> TrainReport:
    """Continues a run from its newest valid checkpoint; what it writes is what an uninterrupted run writes. With
    `epochs` or `steps` it goes on to that end instead, on a schedule that reaches there.

    Raises DataError when the base, the rows or the starting adapter are no longer those of the run.
    """
    directory = find_run(run_dir)
    if not is_run(directory):
        raise MissingInputError(no_run(directory))
    kept = read_run(directory)
    with lock_run(directory):
        try:
            settings, earlier = _kept_settings(directory, kept)
            settings = _at_home(directory, kept, settings, output, metrics, track)
            threads = settings.threads if threads is None else threads
            settings = replace(settings, run_dir=str(directory), threads=threads)
            check_streams(settings.files.values(), [settings.output, settings.metrics])
            check_writable(settings)
            check_trackers(settings.track)
            inputs = Inputs(settings)
            _check_same(directory, kept, {f"{name}_sha256": value for name, value in inputs.hash_files().items()})
            with set_up(settings, profiled=False, local=ranks.local if ranks else 0) as setup:
                _check_same(directory, kept, inputs.hashes(setup.gguf))
                found = newest_checkpoint(directory)
                spans = _spans(setup, settings, earlier)
                if epochs is not None or steps is not None:
                    settings, spans = _extended(directory, kept, settings, setup, found, spans, epochs, steps, ui)
                ui.message(f"the {kind_of(settings)} goes to {place_of_result(settings, directory)}")
                return run_on(settings, setup, directory, ui, inputs, spans, None, found, ranks)
        except Interrupted:
            raise StoppedError(
                f"stopped before the next step; continue with: fabric resume {quoted(directory)}"
            ) from None


def _check_same(directory: Path, kept: dict[str, Any], hashes: Mapping[str, str | None]) -> None:
    """DataError for an input that is no longer what the run began with."""
    for key, value in hashes.items():
        if kept.get(key) != value:
            what = key.removesuffix("_sha256")
            raise DataError(f"{directory}: the {what} has changed since this run began; restore it, or train anew")


def _kept_settings(directory: Path, kept: dict[str, Any]) -> tuple[RunSettings, list[_Earlier]]:
    """The settings of a run, and the ends that it had before it was told to go on. DataError where they are not those
    that it began with, or no settings at all."""
    place = directory / RUN
    try:
        settings = RunSettings.from_json(kept["settings"])
        check_settings(settings)
        earlier = [_Earlier(*one) for one in kept.get("extended", [])]
        whole = [
            one for one in earlier if type(one.step) is int and one.step > 0 and type(one.steps) in (int, type(None))
        ]
        if whole != earlier or whole != sorted(whole, key=lambda one: one.step):
            raise DataError("the ends that it had are not steps")
        for one in earlier:
            check_settings(replace(settings, epochs=one.epochs, steps=one.steps))
    except (TypeError, DataError, UsageError) as error:
        raise DataError(f"{place}: not the settings of a run: {error}") from error
    now, then = settings.fingerprints(earlier), kept.get("fingerprints")
    if now != then:
        then = then if isinstance(then, dict) else {}
        names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        changed = f"the settings have changed since this run began ({', '.join(names)})"
        raise DataError(f"{place}: {changed}; restore them")
    here = {name: directory / file for name, file in KEPT.items() if Path(settings.files.get(name, "")).name == file}
    settings = replace(settings, **{name: str(path) for name, path in here.items() if path.exists()})  # type: ignore[arg-type]
    if gone := [name for name, path in settings.files.items() if is_stream(path) and (name, path) != ("model", STDIO)]:
        raise DataError(f"{place}: the {gone[0]} came through a pipe and was not kept, so the run cannot go on")
    return settings, earlier


def _at_home(
    directory: Path, kept: dict[str, Any], settings: RunSettings, output: str | None, metrics: str | None,
    track: Sequence[str] | None,
) -> RunSettings:  # fmt: skip
    """The settings with the outputs that were given. Those of run.json hold only where this user made the directory: a
    copy may come from a stranger, and writes to nothing outside itself."""
    own = not hasattr(os, "geteuid") or directory.stat().st_uid == os.geteuid()
    if not own or kept.get("place") != place_of(directory):
        for name, given in (("output", output), ("metrics", metrics)):
            place = getattr(settings, name)
            if place not in (None, STDIO) and given is None:
                notice(f"{directory} was not made here, so {place} is not written; --{name} says where to write")
                settings = replace(settings, **{name: None})  # type: ignore[arg-type]
        if settings.track and track is None:
            notice(f"{directory} was not made here, so {', '.join(settings.track)} get no metrics; --track names them")
            settings = replace(settings, track=())
    return replace(
        settings,
        output=settings.output if output is None else output,
        metrics=settings.metrics if metrics is None else metrics,
        track=settings.track if track is None else tuple(track),
    )


class _Earlier(NamedTuple):
    """An end that a run had: the step at which it was told to go on, and what had said where it ends."""

    step: int
    epochs: float
    steps: int | None


def _spans(setup: Setup, settings: RunSettings, earlier: Sequence[_Earlier]) -> Spans:
    rows = len(setup.rows.train)
    last = total_steps(settings, rows)
    ends = [(one.step, total_steps(replace(settings, epochs=one.epochs, steps=one.steps), rows)) for one in earlier]
    return Spans([*ends, (last, last)])


def _extended(
    directory: Path, kept: dict[str, Any], settings: RunSettings, setup: Setup, found: Checkpoint | None,
    spans: Spans, epochs: float | None, steps: int | None, ui: TrainUI,
) -> tuple[RunSettings, Spans]:  # fmt: skip
    """The settings of a run that goes on to another end, kept in its run.json; its steps so far stay as they were."""
    step = found.step if found else 0
    longer = replace(settings, epochs=settings.epochs if epochs is None else epochs, steps=steps)
    check_settings(longer)
    last = total_steps(longer, len(setup.rows.train))
    if (longer.epochs, longer.steps) == (settings.epochs, settings.steps):
        return settings, spans
    if last <= step:
        raise UsageError(f"the run has done {step} steps already, and is to end after {last}: give more")
    earlier = [*kept.get("extended", []), *([_Earlier(step, settings.epochs, settings.steps)] if step else [])]
    told = RunSettings.from_json({**kept["settings"], "epochs": longer.epochs, "steps": longer.steps})
    new = {"settings": told.to_json(), "fingerprints": told.fingerprints(earlier), "extended": earlier}
    write_run(directory, {**kept, **new})
    spans = _spans(setup, longer, [_Earlier(*one) for one in earlier])
    rates = f"rate {rate_of(longer, step, spans):.3g} in step {step}, " if step else ""
    rates += f"{rate_of(longer, step + 1, spans):.3g} in step {step + 1}"
    ui.message(
        f"going on from step {step} to {last}: from here on, the {longer.schedule} schedule is that of {last} steps "
        f"({rates}); the optimizer keeps its state"
    )
    return longer, spans
