"""What is set up half-way is given back: threads, files and memory of handles that nobody closed."""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fabric.core import F32, FROZEN, I32, TOKENS, Buffer, Device, Feed, Graph, Plan
from fabric.errors import FabricError
from tests.fuzz import models

LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")


def held() -> tuple[int, int, int]:
    """Threads, open files and mapped ones of this process."""
    gc.collect()
    places = Path("/proc/self")
    maps = sum(".gguf" in line for line in (places / "maps").read_text().splitlines())
    return len([*(places / "task").iterdir()]), len([*(places / "fd").iterdir()]), maps


@LINUX
def test_models_that_fail_half_way_leave_no_thread_and_no_file(tmp_path: Path) -> None:
    rng, sound = random.Random(1), models.made(random.Random(3))
    models.use(tmp_path, sound)
    before = held()
    for _ in range(120):
        models.use(tmp_path, models.made(rng))
    assert held() == before


class Made:
    """A device of three threads that has run a plan, with a handle of every kind."""

    def __init__(self) -> None:
        self.device = Device("cpu", threads=3)
        self.array = np.arange(8, dtype=np.float32)
        self.buffer = Buffer(self.device, wrap=self.array)
        self.graph = Graph(self.device, 4, 1, F32)
        ids = self.graph.input(I32, TOKENS)
        self.y = self.graph.keep(self.graph.embed(self.graph.leaf(FROZEN, self.buffer, 0, F32, 4, 2), ids))
        self.plan = Plan(self.graph)
        self.run()

    def run(self) -> None:
        """Reads rows 3 and 0."""
        self.plan.run(Feed(2, 1, [np.array([3, 0], np.int32)]))
        assert self.plan.read(self.y, 2, 2).tolist() == [[6, 7], [0, 1]]


@LINUX
@pytest.mark.parametrize("how", ["closed", "closed twice", "forgotten", "in a circle"])
def test_handles_go_in_any_order(how: str) -> None:
    before = held()
    for order in itertools.permutations(["device", "buffer", "graph", "plan"]):
        made = Made()
        for name in order:
            if how.startswith("closed"):
                getattr(made, name).close()
            if how == "closed twice":
                getattr(made, name).close()
            if how == "forgotten":
                delattr(made, name)
        if how == "in a circle":
            made.self = made  # type: ignore[attr-defined]
    del made
    assert held() == before


def test_what_lives_keeps_what_it_stands_on() -> None:
    made = Made()
    del made.device, made.graph, made.buffer, made.array  # the plan reads all of them
    gc.collect()
    made.run()
    made.plan.close()
    with pytest.raises(FabricError, match="closed"):
        made.run()


def test_what_is_forgotten_while_the_device_computes_is_freed_afterwards() -> None:
    device = Device("cpu", threads=2)
    buffer = Buffer(device, 1 << 10)
    with device.turns:  # as the thread that computes does
        del buffer
        assert len(device.turns._to_free) == 1
    assert not device.turns._to_free


def test_the_interpreter_ends_with_handles_that_nobody_closed() -> None:
    code = "import tests.core.test_handles as t; t.kept = t.Made(); t.circle = [t.Made()]; t.circle.append(t.circle)"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
