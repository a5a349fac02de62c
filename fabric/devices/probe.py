"""Measures a device and writes what it finds as a profile: the range that a binding really spans, and the shape of
tiles and the precision with which products are fastest."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fabric.core import BF16, F32, FROZEN, I32, TOKENS, Buffer, Device, DeviceInfo, Feed, Graph, Plan
from fabric.devices.opening import AUTO, candidates
from fabric.devices.places import places
from fabric.devices.profiles import DEFAULT, KEYS, Profile
from fabric.errors import DeviceError, UsageError
from fabric.files import open_output

TILES = [(rows, cols) for rows in KEYS["tile_rows"].choices for cols in KEYS["tile_cols"].choices]
COLS = 1024  # floats a row of the matrix that fills a binding
TOKENS_TIMED, RUNS, RUN_S = 256, 3, 0.02  # of a timed product: its rows, how often, and seconds that it should take
LEAST_BINDING = int(KEYS["max_binding_bytes"].low)


@dataclass(frozen=True)
class Probed:
    """`values` as a profile has them; `seconds` of a product by what was tried."""

    info: DeviceInfo
    values: dict[str, Any]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"device": self.info.name, "driver": self.info.driver, "values": self.values, "seconds": self.seconds}

    def to_toml(self) -> str:
        """The profile, with what was measured as comments."""
        tables: dict[str, list[str]] = {"limits": [], "run": []}
        for key, value in self.values.items():
            tables[KEYS[key].table].append(f"{key} = {json.dumps(value)}")
        match = {"backend": self.info.backend, "name": [self.info.name]}
        match |= {"driver": [self.info.driver]} if self.info.driver else {}
        lines = [f"# Measured by fabric devices --probe; a product of {TOKENS_TIMED} rows took"]
        lines += [f"#   {what:8} {1000 * seconds:8.2f} ms" for what, seconds in self.seconds.items()]
        lines += ["", "[match]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in match.items())]
        for table, keys in tables.items():
            lines += ["", f"[{table}]", *keys] if keys else []
        return "\n".join(lines) + "\n"


def probe(name: str, progress: Callable[[int, int], None] | None = None) -> Probed:
    """Measures the device of that name, without any profile. Raises DeviceError where nothing runs on it."""
    with contextlib.closing(DEFAULT.open(name)) as device:
        info, peak = device.info, device.peak("f32", 0.1)
    width = min(4096, max(256, int(math.sqrt(peak * RUN_S / (2 * TOKENS_TIMED))) // 64 * 64))
    tiled = info.backend != "cpu"
    trials: list[tuple[str, int, dict[str, float]]] = [("f32", F32, {}), ("bf16", BF16, {})]
    trials += [(f"{r} x {c}", F32, {"tile_rows": r, "tile_cols": c}) for r, c in TILES if tiled]
    seconds: dict[str, float] = {}
    for done, (what, precision, options) in enumerate(trials, 1):
        opened = Profile(options).open(name)
        with contextlib.suppress(DeviceError), contextlib.closing(opened) as device:
            seconds[what] = _product_s(device, precision, width)
        if progress:
            progress(done, len(trials))
    if not seconds:
        raise DeviceError(f"no product runs on {info.name}")
    values: dict[str, Any] = {}
    if tiled:
        binding = _binding(name, info)
        if binding < info.max_binding_bytes:
            values["max_binding_bytes"] = binding
        best = min((t for t in TILES if f"{t[0]} x {t[1]}" in seconds), key=lambda t: seconds[f"{t[0]} x {t[1]}"])
        values["tile_rows"], values["tile_cols"] = best
    values["precision"] = min(("f32", "bf16"), key=lambda p: seconds.get(p, math.inf))
    return Probed(info, values, seconds)


def probe_into(name: str, output: str | None, progress: Callable[[int, int], None] | None = None) -> tuple[Probed, str]:
    """Probes, and writes the profile to `output` (`-`: stdout), or among the user's; where that is comes back too."""
    name = candidates()[0][0] if name == AUTO else name
    with contextlib.closing(DEFAULT.open(name)) as device:
        place = output or _own_place(device.info)
    with open_output(place, text=True) as out:
        found = probe(name, progress)
        out.write(found.to_toml().encode())
    return found, place


def _own_place(info: DeviceInfo) -> str:
    if places.profiles is None:
        raise UsageError("there is no folder for profiles: name a file with -o")
    places.profiles.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{info.backend}-{info.name}".lower()).strip("-")
    return str(places.profiles / f"{slug}.toml")


@contextlib.contextmanager
def _ready(graph: Graph, *buffers: Buffer) -> Iterator[Plan]:
    plan = Plan(graph)
    graph.close()
    try:
        yield plan
    finally:
        plan.close()
        for buffer in buffers:
            buffer.close()


def _product_s(device: Device, precision: int, width: int) -> float:
    """Seconds of one product (256, width) by (width, width): the best of a few, after one that builds its kernel."""
    random = np.random.default_rng(0)
    weight = Buffer(device, wrap=random.standard_normal((width, width)).astype(np.float32))
    graph = Graph(device, TOKENS_TIMED, 1, precision)
    x = graph.scale(graph.input(F32, TOKENS, width), 1.0)  # in the activations' own type
    graph.keep(graph.linear(x, graph.leaf(FROZEN, weight, 0, F32, width, width)))
    feed = Feed(TOKENS_TIMED, 0, [random.standard_normal((TOKENS_TIMED, width)).astype(np.float32)])
    with _ready(graph, weight) as plan:
        times = []
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            plan.run(feed)
            times.append(time.perf_counter() - began)
        return min(times[1:])


def _binding(name: str, info: DeviceInfo) -> int:
    """The largest range, of the driver's halved until it works, whose last row a kernel reads."""
    size = tried = min(info.max_binding_bytes, info.max_allocation_bytes, info.memory_bytes // 4)
    while tried > LEAST_BINDING:
        with contextlib.suppress(DeviceError), contextlib.closing(DEFAULT.open(name)) as device:
            if _reads(device, tried):
                # What memory alone kept from being tried is the driver's word.
                return info.max_binding_bytes if tried == size else tried
        tried //= 2
    return LEAST_BINDING


def _reads(device: Device, size: int) -> bool:
    rows = size // (4 * COLS)
    buffer = Buffer(device, rows * 4 * COLS)
    last = np.arange(COLS, dtype=np.float32)
    buffer.write(last, (rows - 1) * 4 * COLS)
    graph = Graph(device, 2, 1, F32)
    y = graph.keep(graph.embed(graph.leaf(FROZEN, buffer, 0, F32, rows, COLS), graph.input(I32, TOKENS)))
    with _ready(graph, buffer) as plan:
        plan.run(Feed(2, 0, [np.array([0, rows - 1], np.int32)]))
        got = plan.read(y, 2, COLS)
    return np.array_equal(got[1], last) and (rows == 1 or not got[0].any())
