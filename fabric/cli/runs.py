"""`fabric runs`: lists training runs, compares them, and removes old ones."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fabric.cli import console
from fabric.errors import UsageError
from fabric.settings import Setting

if TYPE_CHECKING:
    from fabric.runs.listing import Removed, Summary

NONE = "-"


def command(
    runs: Annotated[
        tuple[str, ...],
        Setting(
            "run directories, names, or folders of runs; default: all in .fabric/runs", "RUN...", path="in",
            operand=True, many=True,
        ),
    ] = (),
    compare: Annotated[
        bool, Setting("compare settings and losses of runs; default: the newest two", touches="task")
    ] = False,
    prune: Annotated[bool, Setting("remove runs that are named, or all but --keep", touches="task")] = False,
    keep: Annotated[
        int | None, Setting("with --prune: number of newest runs to keep", "N", low=0, touches="task")
    ] = None,
    dry_run: Annotated[bool, Setting("with --prune: print what would be removed", touches="task")] = False,
) -> None:  # fmt: skip
    """Lists training runs, the newest first: their state, steps, losses and size.

    --prune asks at a terminal, and never touches a run that is running.
    """
    from fabric.runs.listing import find_runs, summaries

    if compare and prune:
        raise UsageError("--compare and --prune are two tasks: leave one out")
    if not prune and (keep is not None or dry_run):
        raise UsageError(f"{'--keep' if keep is not None else '--dry-run'} belongs to --prune")
    places = find_runs(runs)
    found = summaries(places)
    if prune:
        _prune(found, named=bool(runs), keep=keep, dry_run=dry_run)
    elif compare:
        _compare(sorted(found, key=lambda one: places.index(Path(one.path))) if runs else found[:2])
    else:
        _list(found, named=bool(runs))


def _list(found: list[Summary], named: bool) -> None:
    many = any(one.val_loss is not None for one in found)
    validations = ["validation", "best"] if many else []
    rows = [["name", "state", "model", "step", "loss", "lowest", *validations, "size", "began"]]
    for one in found:
        validation = [_loss(one.val_loss), _loss(one.best_val_loss)] if many else []
        steps = f"{one.step}/{one.steps}" if one.steps is not None else str(one.step)
        rows.append(
            [one.path if named else one.name, one.state, one.model, steps, _loss(one.loss), _loss(one.lowest_loss),
             *validation, console.human_bytes(one.bytes), _time(one.began)]
        )  # fmt: skip
    text = console.table(rows, "<<<") if found else "no runs here: `fabric train` makes one, in .fabric/runs"
    console.report({"runs": [dataclasses.asdict(one) for one in found]}, text, result=True)


def _compare(found: list[Summary]) -> None:
    from fabric.runs.listing import differing, windows

    if len(found) < 2:
        raise UsageError(f"--compare needs two runs, and there {'is one' if found else 'are none'}")
    places = [Path(one.path) for one in found]
    settings, losses = differing(places), windows(places)
    rows = [["", *(one.name for one in found)]]
    rows += [[f"--{name.replace('_', '-')}", *map(_value, values)] for name, values in settings.items()]
    rows.append(["state", *(one.state for one in found)])
    rows.append(["steps", *(f"{one.step}/{one.steps}" for one in found)])
    for low, high, values in losses:
        rows.append([f"loss, step{f's {low} to' if low < high else ''} {high}", *map(_loss, values)])
    for what, name in (("last loss", "loss"), ("last validation", "val_loss"), ("best validation", "best_val_loss")):
        values = [getattr(one, name) for one in found]
        if any(value is not None for value in values):
            rows.append([what, *map(_loss, values)])
    told = {
        "runs": [dataclasses.asdict(one) for one in found],
        "settings": settings,
        "losses": [{"first_step": low, "last_step": high, "loss": values} for low, high, values in losses],
    }
    console.report(told, console.table(rows, "<"), result=True)


def _prune(found: list[Summary], named: bool, keep: int | None, dry_run: bool) -> None:
    from fabric.runs import listing

    if not named and keep is None:
        raise UsageError("--prune needs the names of runs, or with --keep N how many of the newest stay")
    chosen = [one for one in found[keep or 0 :] if named or one.state != "running"]
    places = [Path(one.path) for one in chosen]
    if places and not dry_run and sys.stdin.isatty() and sys.stderr.isatty():
        would = listing.prune(places, dry_run=True)
        _say(would, "would be removed")
        print("remove them? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            places = []
    removed = listing.prune(places, dry_run)
    what = "would be removed" if dry_run else "removed"
    _say(removed, what)
    total = sum(one.bytes for one in removed)
    count = f"{len(removed)} run{'s' * (len(removed) != 1)}"
    values = {"dry_run": dry_run, "bytes": total, "removed": [dataclasses.asdict(one) for one in removed]}
    console.report(values, f"{count} {what}: {total:,} bytes ({console.human_bytes(total)})", result=True)


def _say(removed: list[Removed], what: str) -> None:
    for one in removed:
        only = f", and {one.result}, which is nowhere else" if one.result else ""
        console.note(f"{one.path} {what}: {console.human_bytes(one.bytes)}{only}")


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return NONE if value is None else str(value)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
