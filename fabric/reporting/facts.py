"""What a report says of runs in tables: how far they came, how they were set, what they were made of and on, and what
their models answered. A column a run, so that runs stand beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from fabric import __version__
from fabric.reporting.gather import Reading
from fabric.reporting.tables import Table, cell, duration, number, size
from fabric.settings import declared
from fabric.training.settings import TrainSettings

_MOST_SAMPLES = 50  # prompts
_MOST_ANSWERS = 50  # of a prompt and run
_INPUTS = {"model": "base model", "data": "rows", "val": "validation rows", "adapter": "first adapter",
           "template": "chat template"}  # fmt: skip

Row = tuple[str, Callable[[Reading], str]]


def overview(readings: Sequence[Reading]) -> Table:
    """How far each run came, and what it came to."""
    rows: list[Row] = [
        ("name", lambda r: cell(r.metrics.name if r.metrics.name != r.name else None)),
        ("state", state),
        ("steps", _steps),
        ("epochs", lambda r: _last(r, "epoch")),
        ("loss, first step", lambda r: number(_first(r.values("loss")))),
        ("loss, last step", lambda r: _last(r, "loss")),
        ("best validation loss", _best),
        ("last validation loss", lambda r: _last(r, "val_loss")),
        ("tokens", lambda r: cell(int(sum(r.values("tokens"))) if r.values("tokens") else None)),
        ("training time", lambda r: duration(sum(r.values("seconds")) if r.values("seconds") else None)),
        ("tokens/s", _speed),
        ("peak memory", lambda r: size(max(r.values("peak_bytes"), default=None))),
    ]
    return _beside("overview", "Runs", readings, rows)


def state(reading: Reading) -> str:
    """What became of a run, and what it wrote."""
    known = f"{reading.state}: {cell(reading.error)}" if reading.error else reading.state
    written = f"{reading.result}, {size(reading.result_bytes)}" if reading.result else ""
    return "; ".join(filter(None, (known, written))) or cell(None)


def settings(readings: Sequence[Reading]) -> list[Table]:
    """What was set: where runs differ, what is not at a fixed default, and all the rest."""
    known = {one.name: one for one in declared(TrainSettings)}
    defaults = {one.name: one.default for one in fields(TrainSettings)}
    paths = {name for name, one in known.items() if one.setting.path is not None and not one.setting.number}
    names = dict.fromkeys(n for r in readings for n in r.group("settings") if n not in paths)
    values = {name: [_setting(r, name) for r in readings] for name in names}
    differ = [name for name, each in values.items() if len(set(each)) > 1]
    chosen = [
        name for name, each in values.items()
        if name not in differ and not (name in defaults and each[0] == cell(defaults[name]))
    ]  # fmt: skip
    rest = [name for name in values if name not in differ and name not in chosen]
    found = [
        ("settings-differ", "Settings that differ", differ, False),
        ("settings-chosen", "Settings given, or chosen from the model and the rows", chosen, False),
        ("settings-default", "Settings at their defaults", rest, True),
    ]
    head = _head("setting", readings)
    return [
        Table(id, caption, head, [[flag(name), *values[name]] for name in names], folded=folded)
        for id, caption, names, folded in found if names
    ]  # fmt: skip


def flag(name: str) -> str:
    """A setting as it is typed."""
    return "--" + cell(name).replace("_", "-")


def provenance(readings: Sequence[Reading]) -> list[Table]:
    """What runs were made of, by name and SHA-256, and the steps that made their results."""
    rows: list[Row] = [
        ("fabric", lambda r: cell(_version(r))),
        ("began", lambda r: cell(r.group("about").get("began"))),
        ("architecture", lambda r: cell(r.group("about").get("architecture"))),
    ]
    for name, what in _INPUTS.items():
        rows.append((what, lambda r, name=name: _file(r, name)))  # type: ignore[misc]
        rows.append((f"{what}, SHA-256", lambda r, name=name: cell(r.told.get(f"{name}_sha256"))))  # type: ignore[misc]
    rows += [
        ("rows that train", lambda r: cell(r.group("about").get("rows"))),
        ("rows that validate", lambda r: cell(r.group("about").get("val_rows"))),
        ("tokens of an epoch", lambda r: cell(r.group("about").get("tokens"))),
        ("of which are trained", lambda r: cell(r.group("about").get("trained_tokens"))),
    ]
    found = [_beside("provenance", "What the runs were made of", readings, rows)]
    for i, reading in enumerate(readings):
        if reading.history:
            steps = [
                [cell(one.get("command")), cell(one.get("version")), cell(one.get("seed")), _pairs(one.get("inputs"))]
                for one in reading.history
            ]
            caption = f"History of {reading.result}" + (f" of {reading.name}" if len(readings) > 1 else "")
            found.append(
                Table(f"history-{i}", caption, ["command", "version", "seed", "SHA-256 of inputs"], steps, folded=True)
            )
    return found


def machine(readings: Sequence[Reading]) -> Table:
    """What runs ran on, and the memory they planned and took."""
    parts = dict.fromkeys(name for r in readings for name in _group(r.group("about"), "memory"))
    rows: list[Row] = [
        ("device", lambda r: cell(_group(r.group("about"), "device").get("name"))),
        ("instructions", lambda r: cell(_group(r.group("about"), "device").get("isa"))),
        ("threads", lambda r: cell(_group(r.group("about"), "device").get("threads") or None)),
        ("ranks", lambda r: cell(r.group("about").get("ranks"))),
        ("precision", lambda r: cell(r.group("about").get("precision"))),
        ("frozen weights", lambda r: cell(r.group("about").get("weights"))),
        ("parameters that train", lambda r: cell(r.group("about").get("trained_params"))),
        ("memory planned", lambda r: _bytes(r.group("about").get("planned_bytes"))),
        *((f"– {cell(name).replace('_', ' ')}", lambda r, name=name: _part(r, name)) for name in parts),
        ("model file, mapped", lambda r: _bytes(r.group("about").get("model_bytes"))),
        ("peak of the process", lambda r: size(max(r.values("peak_bytes"), default=None))),
    ]  # fmt: skip
    return _beside("machine", "Device and memory", readings, rows)


def samples(readings: Sequence[Reading]) -> tuple[list[Table], int]:
    """What the models answered to each prompt, before and after; and how many prompts are left out."""
    prompts = dict.fromkeys(sample.prompt for reading in readings for sample in reading.samples)
    found = []
    for i, prompt in enumerate(list(prompts)[:_MOST_SAMPLES]):
        rows = [["prompt", cell(prompt)]]
        expected = dict.fromkeys(
            s.expected for r in readings for s in r.samples if s.prompt == prompt and s.expected is not None
        )
        rows += [["expected", cell(text)] for text in expected]
        for reading in readings:
            answers = sorted((s for s in reading.samples if s.prompt == prompt), key=lambda s: s.step)
            name = f"{reading.name}, " if len(readings) > 1 else ""
            shown = answers[: _MOST_ANSWERS - 1] + answers[max(_MOST_ANSWERS - 1, len(answers) - 1) :]
            rows += [[f"{name}{_when(one.step)}", cell(one.answer)] for one in shown]
        found.append(Table(f"sample-{i}", f"Sample {i + 1}", ["", "text"], rows, prose=True))
    return found, max(0, len(prompts) - _MOST_SAMPLES)


def _when(step: int) -> str:
    return f"step {step:,}" if step else "before training"


def _beside(id: str, caption: str, readings: Sequence[Reading], rows: Sequence[Row]) -> Table:
    """A column a run; rows of which no run knows anything are left out."""
    told = [[name, *(of(reading) for reading in readings)] for name, of in rows]
    return Table(id, caption, _head("", readings), [row for row in told if set(row[1:]) != {cell(None)}])


def _head(first: str, readings: Sequence[Reading]) -> list[str]:
    return [first, *(cell(reading.name) for reading in readings)]


def _setting(reading: Reading, name: str) -> str:
    there = reading.group("settings")
    return cell(there[name]) if name in there else cell(None)


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _file(reading: Reading, name: str) -> str:
    """A file's name without the folders of whoever ran it."""
    value = reading.group("settings").get(name)
    return cell(value.replace("\\", "/").rsplit("/", 1)[-1] if isinstance(value, str) else value)


def _version(reading: Reading) -> object:
    return reading.group("about").get("version") or next((s.get("version") for s in reading.history[::-1]), None)


def _pairs(values: object) -> str:
    return "; ".join(f"{cell(k)}: {cell(v)}" for k, v in values.items()) if isinstance(values, dict) else cell(values)


def _steps(reading: Reading) -> str:
    steps = reading.group("about").get("steps")
    return f"{reading.last_step:,}" + (f" of {steps:,}" if isinstance(steps, int) else "")


def _first(values: Sequence[float]) -> float | None:
    return values[0] if values else None


def _last(reading: Reading, column: str) -> str:
    values = reading.values(column)
    return number(values[-1] if values else None)


def _best(reading: Reading) -> str:
    series = reading.metrics.columns.get("val_loss")
    if series is None:
        return cell(None)
    best = min(range(len(series.values)), key=series.values.__getitem__)
    return f"{number(series.values[best])} (step {series.steps[best]:,.0f})"


def _speed(reading: Reading) -> str:
    tokens, seconds = sum(reading.values("tokens")), sum(reading.values("seconds"))
    return f"{tokens / seconds:,.0f}" if tokens > 0 and seconds > 0 else cell(None)


def _part(reading: Reading, name: str) -> str:
    return _bytes(_group(reading.group("about"), "memory").get(name))


def _bytes(value: object) -> str:
    return size(value) if isinstance(value, (int, float)) else cell(value)


MADE_BY = f"fabric {__version__}"
