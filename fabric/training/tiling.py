"""What training a model on a device would cut into tiles, and because of which limit; nothing runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from fabric.devices.opening import Opened, opened
from fabric.models import architecture_of
from fabric.models.recorder import Weights
from fabric.training.defaults import derived
from fabric.training.machine import Machine, capacities
from fabric.training.settings import RunSettings, TrainSettings
from fabric.training.target import target_of
from fabric.weights.gguf import GGUF

ROWS = 1000  # of an assumed data set, which decides the batch


def plan_tiles(settings: TrainSettings) -> dict[str, Any]:
    """One micro-batch as training would plan it where rows have `ctx` tokens.

    `tiles`: a row for each op, tensor (`blk.*` for all blocks) and limit, with its shape and bytes, the `most` that the
    limit allows (bytes; of a "reduction" rows),
    and how many `ops` become how many `launches`. `launches`: of all. Raises DataError, DeviceError.
    """

    @contextlib.contextmanager
    def planned(settings: RunSettings, weights: Weights) -> Iterator[Machine]:
        target, tokens = target_of(settings, weights), capacities(settings, [settings.ctx] * settings.batch)
        with contextlib.closing(Machine(settings, weights, target.layout, target.alpha, tokens)) as machine:
            yield machine

    with contextlib.closing(GGUF.open(settings.model)) as gguf:
        architecture_of(gguf)
        chosen, _ = derived(settings, gguf, ROWS, 0)
        with opened(chosen, gguf, planned) as found:
            return _tilings(found, gguf)


def _tilings(found: Opened[RunSettings, Machine], gguf: GGUF) -> dict[str, Any]:
    machine = found.made
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for tiling in machine.plan.tilings():
        name = re.sub(r"^blk\.\d+\.", "blk.*.", machine.names.get(tiling.tensor, ""))
        what = {"weight": name, "gradient": f"gradient of {name}"}.get(tiling.of, tiling.of)
        told = {
            "op": tiling.op, "tensor": what, "rows": tiling.rows, "cols": tiling.cols, "bytes": tiling.bytes,
            "limit": tiling.which, "most": tiling.limit,
        }  # fmt: skip
        row = rows.setdefault(tuple(told.values()), {**told, "ops": 0, "launches": 0})
        row["ops"] += 1
        row["launches"] += tiling.tiles
    return {
        "model": gguf.name, "device": found.settings.device, "profile": found.profile.name, "tokens": machine.capacity,
        "precision": machine.precision, "launches": machine.plan.stats.launches,
        "planned_bytes": machine.planned_bytes(), "weights": machine.weights_kept,
        "decoded_bytes": machine.plan.stats.constant_bytes, "uploaded_bytes": machine.plan.stats.weight_bytes,
        "tiles": list(rows.values()),
    }  # fmt: skip
