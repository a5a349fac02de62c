"""What training a model on a device would cut into tiles, and because of which limit; nothing runs."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import Any

from fabric.devices.profiles import profile_of
from fabric.models import architecture_of
from fabric.models.recorder import Weights
from fabric.training.loop import Machine, capacities
from fabric.training.settings import TrainSettings
from fabric.training.target import target_of
from fabric.weights.gguf import GGUF


def plan_tiles(settings: TrainSettings) -> dict[str, Any]:
    """One micro-batch as training would plan it where rows have `ctx` tokens.

    `tiles`: a row for each op, tensor (`blk.*` for all blocks) and limit, with its shape and bytes, the `most` that the
    limit allows (bytes; of a "reduction" rows),
    and how many `ops` become how many `launches`. `launches`: of all. Raises DataError, DeviceError.
    """
    profile = profile_of(settings.device)
    if settings.precision == "auto":
        settings = replace(settings, precision=profile.get("precision", "auto"))
    if settings.weights == "auto":
        settings = replace(settings, weights=profile.get("weights", "auto"))
    if settings.checkpointing is None:
        settings = replace(settings, checkpointing=profile.get("checkpointing"))
    settings = replace(settings, micro_batch=profile.get("micro_batch"))
    tokens = capacities(settings, [settings.ctx] * settings.batch)
    with contextlib.ExitStack() as stack:
        gguf = stack.enter_context(contextlib.closing(GGUF.open(settings.model)))
        architecture_of(gguf)
        device = stack.enter_context(contextlib.closing(profile.open(settings.device, settings.threads)))
        weights = stack.enter_context(contextlib.closing(Weights(gguf, device)))
        target = target_of(settings, weights)
        machine = stack.enter_context(
            contextlib.closing(Machine(settings, weights, target.layout, target.alpha, tokens))
        )  # fmt: skip
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
            "model": gguf.name, "device": settings.device, "profile": profile.name, "tokens": machine.capacity,
            "precision": machine.precision, "launches": machine.plan.stats.launches,
            "planned_bytes": machine.planned_bytes(), "weights": machine.weights_kept,
            "decoded_bytes": machine.plan.stats.constant_bytes, "uploaded_bytes": machine.plan.stats.weight_bytes,
            "tiles": list(rows.values()),
        }  # fmt: skip
