"""How a file was made: `fabric.history`, a GGUF string array with one JSON object a step, oldest first. A step tells
the subcommand, the version, the settings that affect the result, the seed and the SHA-256 of its inputs; never paths,
times or thread counts, so that equal work gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fabric import __version__
from fabric.errors import DataError
from fabric.weights.gguf import GGUF
from fabric.weights.gguf_write import ARRAY, STRING, Value, ValueType, encode_value

KEY = "fabric.history"

Step: TypeAlias = dict[str, Any]


def step(
    command: str, settings: Mapping[str, Any], inputs: Mapping[str, str | list[str]], seed: int | None = None
) -> Step:
    """Describe what a command does to its inputs (name: SHA-256), for the history of its output."""
    made: Step = {"command": command, "version": __version__, "settings": dict(settings), "inputs": dict(inputs)}
    if seed is not None:
        made["seed"] = seed
    return made


def read_history(gguf: GGUF) -> list[Step]:
    """Return the steps that made a file; empty for files of others. DataError when they are not JSON objects."""
    lines = gguf.get(KEY, list, [])
    try:
        steps = [json.loads(line) for line in lines]
    except (ValueError, TypeError, RecursionError):
        steps = [None]
    if not all(isinstance(made, dict) for made in steps):
        raise DataError(f"{gguf.name}: {KEY} does not hold a JSON object a step")
    return steps


def join_histories(*histories: Sequence[Step]) -> list[Step]:
    """Put histories one after the other, a step that several share only once."""
    joined: list[Step] = []
    for history in histories:
        joined += [made for made in history if made not in joined]
    return joined


def encode_history(steps: Sequence[Step]) -> Value:
    """Turn steps into the metadata value of `fabric.history`."""
    lines = [json.dumps(made, sort_keys=True, separators=(",", ":")) for made in steps]
    return encode_value(lines, ValueType(ARRAY, STRING))
