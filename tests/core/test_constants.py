"""Values of memory that is only read: computed once a device, shared by its plans, in the bytes that were planned."""

from __future__ import annotations

import numpy as np
import pytest

from fabric.core import BF16, Device, Plan
from tests.core.harness import Lab
from tests.support.devices import vulkan

F16, ROWS, COLS = 1, 96, 64


def factors(device: Device) -> tuple[Lab, int, np.ndarray]:
    """A product with frozen F16, of numbers that are BF16 too, and the memory that it lies in."""
    lab = Lab(device, precision=BF16)
    ids = lab.ints(np.arange(lab.tokens, dtype=np.int32))
    x = lab.graph.embed(lab.param(lab.tokens, COLS), ids)
    memory = (lab.random.integers(-8, 9, (ROWS, COLS)) / 64).astype(np.float16)
    nll = lab.loss(lab.graph.linear(x, lab.frozen(memory, F16)), ROWS)
    lab.params.write(lab.values)
    return lab, nll, memory


def losses(lab: Lab, nll: int, plan: Plan) -> np.ndarray:
    plan.run(lab.feed())
    return plan.read(nll, lab.tokens, 1)


@pytest.mark.parametrize(
    "limits", [{}, {"max_allocation_bytes": 8192, "max_binding_bytes": 5000}], ids=["any", "small"]
)
@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_a_decoded_weight_takes_its_bytes_and_the_place_of_the_files(backend: str, limits: dict[str, int]) -> None:
    name = vulkan() if backend == "vulkan" else backend
    found = []
    for decode in (False, True):
        lab, nll, _ = factors(Device(name, **limits))
        plan = lab.plan(decode=decode)
        found.append((losses(lab, nll, plan), lab.grads.read(), plan.stats))
        if limits and decode:
            assert {t.bytes for t in plan.tilings() if t.of == "weight" and t.rows == ROWS} == {ROWS * COLS * 2}
    (want, gradients, files), (got, same, decoded) = found
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(same, gradients, rtol=1e-5, atol=1e-7)
    assert (files.constant_bytes, decoded.constant_bytes) == (0, ROWS * COLS * 2)
    assert files.weight_bytes - decoded.weight_bytes == (0 if backend == "cpu" else ROWS * COLS * 2)
    assert decoded.allocated_bytes == decoded.arena_bytes + decoded.scratch_bytes + decoded.input_bytes


def test_plans_of_a_device_share_it_for_as_long_as_one_of_them_lives() -> None:
    lab, nll, memory = factors(Device("cpu"))
    first = lab.plan(decode=True)
    want = losses(lab, nll, first)
    memory[:] = 0  # who computed it anew would see that
    second = Plan(lab.graph, decode=True)
    assert np.array_equal(losses(lab, nll, second), want)
    first.close()
    assert np.array_equal(losses(lab, nll, second), want)
    second.close()
    assert not np.array_equal(losses(lab, nll, Plan(lab.graph, decode=True)), want)


def test_whatever_is_computed_from_it_alone_is_computed_once() -> None:
    device, found = Device("cpu"), []
    for factor in (1.0, 2.0):
        lab = Lab(device)
        table = lab.random.standard_normal((lab.tokens, COLS)).astype(np.float32)
        hidden = lab.frozen(table * factor) if factor == 1 else lab.graph.scale(lab.frozen(table / factor), factor)
        nll = lab.loss(hidden, COLS)
        plan = Plan(lab.graph)
        found.append((losses(lab, nll, plan), plan.stats.launches, plan.stats.constant_bytes))
    assert np.array_equal(found[0][0], found[1][0])
    assert found[0][1:] == (found[1][1], 0) and found[1][2] == lab.tokens * COLS * 4
