"""Slower on purpose, and parted finely: the same bits, and a cancel is heard in between."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from fabric.core import Buffer, Cancelled, Device, Optimizer, Progress, Range
from tests.core.test_plan import decoder, run
from tests.support.devices import vulkan

PACES: list[dict[str, Any]] = [{"duty": 0.3}, {"submit_ms": 1}, {"workgroups": 3}]


@pytest.mark.parametrize("pace", PACES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_pace_changes_no_bit(backend: str, pace: dict[str, Any]) -> None:
    name = vulkan() if backend == "vulkan" else backend
    want, got = run(Device(name)), run(Device(name, **pace))
    assert np.array_equal(want[0], got[0])
    assert np.array_equal(want[1], got[1])


@pytest.mark.parametrize("pace", [{"duty": 0.05}, {"submit_ms": 1, "workgroups": 1}], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_a_cancel_is_heard_between_submissions(backend: str, pace: dict[str, Any]) -> None:
    device = Device(vulkan() if backend == "vulkan" else backend, **pace)
    lab, _ = decoder(device)
    plan, progress = lab.plan(), Progress()
    lab.params.write(lab.values)
    m, v = Buffer(device, lab.params.nbytes), Buffer(device, lab.params.nbytes)
    optimizer = Optimizer(m, v, [Range(0, lab.used)], lr=1e-2, t=1)
    feeds = [lab.feed()] * 500

    def cancel() -> None:
        while not progress.fraction:
            pass
        progress.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        plan.step(feeds, optimizer, progress)
    assert progress.fraction < 1
    assert np.array_equal(lab.params.read(), lab.values)
    plan.step(feeds[:1], optimizer)  # the device goes on
    assert not np.array_equal(lab.params.read(), lab.values)
