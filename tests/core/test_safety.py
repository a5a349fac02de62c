"""Nothing that a file or a caller asks for reaches outside its memory: it is computed, or refused in a sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from fabric.core import (
    F32,
    FROZEN,
    HALVES,
    I32,
    PAIRS,
    PARAM,
    SILU,
    STATE,
    TOKENS,
    TRAINED,
    Buffer,
    Device,
    Feed,
    Graph,
    Lora,
    Optimizer,
    Plan,
    Range,
)
from fabric.errors import DataError, DeviceError, FabricError
from fabric.weights.formats import BY_NAME
from tests.core.harness import Lab

Q4_0, F16 = BY_NAME["Q4_0"].type, BY_NAME["F16"].type


@pytest.mark.parametrize("layout", [PAIRS, HALVES])
@pytest.mark.parametrize("head_dim", [6, 1030, 2048])
def test_heads_of_any_size_are_rotated(head_dim: int, layout: int) -> None:
    lab = Lab(Device("cpu", threads=2), tokens=3)
    positions, n_rot, heads = np.arange(3), head_dim - 2, 2
    frequencies = np.linspace(1.0, 0.1, n_rot // 2, dtype=np.float32)
    x = lab.random.standard_normal((3, heads * head_dim)).astype(np.float32)
    table = lab.graph.rope_table(lab.ints(positions), lab.frozen(frequencies[None]))
    data = lab.graph.input(F32, TOKENS, heads * head_dim)
    lab.extra.append(x)  # type: ignore[arg-type]
    y = lab.graph.keep(lab.graph.rope(data, table, head_dim, layout))
    plan = Plan(lab.graph)
    plan.run(lab.feed())
    turn = np.exp(1j * positions[:, None] * frequencies)[:, None, :]
    expected = x.reshape(3, heads, head_dim).copy()
    if layout == PAIRS:
        turned = (expected[..., 0:n_rot:2] + 1j * expected[..., 1:n_rot:2]) * turn
        expected[..., 0:n_rot:2], expected[..., 1:n_rot:2] = turned.real, turned.imag
    else:
        turned = (expected[..., : n_rot // 2] + 1j * expected[..., n_rot // 2 : n_rot]) * turn
        expected[..., : n_rot // 2], expected[..., n_rot // 2 : n_rot] = turned.real, turned.imag
    assert np.abs(plan.read(y, 3, heads * head_dim) - expected.reshape(3, -1)).max() < 1e-5


def ladder(device: Device, layers: int, widths: int) -> Graph:
    """A graph of many tensors of several sizes, all of which live at once in pairs."""
    weights = Buffer(device, 4 * 8 * widths * 8)
    graph = Graph(device, 4, 4, F32)
    x = first = graph.input(F32, TOKENS, 8)
    for i in range(layers):
        rows = 8 * (1 + i % widths)
        up = graph.linear(x, graph.leaf(FROZEN, weights, 0, F32, rows, 8))
        x = graph.linear(graph.glu(up, up, 0), graph.leaf(FROZEN, weights, 0, F32, 8, rows), residual=first)
        graph.keep(x)
    return graph


def test_two_threads_that_plan_at_once_get_the_plans_that_each_gets_alone() -> None:
    graphs = [ladder(Device("cpu", threads=1), layers, widths) for layers, widths in ((400, 7), (300, 5))]
    expected = [Plan(graph).stats.arena_bytes for graph in graphs]
    found: list[set[int]] = [set(), set()]

    def work(i: int) -> None:
        for _ in range(60):
            plan = Plan(graphs[i])
            found[i].add(plan.stats.arena_bytes)
            plan.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{expected[0]}, {expected[1]}]


@pytest.mark.parametrize("tokens", [3, 40])
def test_a_term_that_is_also_a_factor_keeps_its_memory(tokens: int) -> None:
    lab = Lab(Device("cpu", threads=2), tokens=tokens)
    rows = lab.random.standard_normal((13, 96)).astype(np.float32)
    weight = lab.random.standard_normal((96, 96)).astype(np.float32)
    ids = np.arange(tokens) % 13
    x = lab.graph.embed(lab.frozen(rows), lab.ints(ids))
    y = lab.graph.keep(lab.graph.linear(x, lab.frozen(weight), residual=x))
    plan = Plan(lab.graph)
    assert plan.stats.arena_bytes >= 2 * tokens * 96 * 4
    plan.run(lab.feed())
    expected = rows[ids] @ weight.T + rows[ids]
    assert np.abs(plan.read(y, tokens, 96) - expected).max() < 1e-3


# ---- the interface itself: a mistake of the caller ends in a sentence ----


@pytest.mark.parametrize("name", ["cpu:3", "cpu:", "cpu:x", "vulkan:abc", "vulkan:-1", "vulkan:1x", "vulkan: 0", "gpu"])
def test_a_device_that_is_none_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(DeviceError, match=f"there is no device '{name}' here"):
        Device(name)


@pytest.mark.parametrize("limits", [{"max_binding_bytes": 3}, {"max_allocation_bytes": 100}, {"tile_rows": 5}])
def test_limits_that_leave_no_room_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(DeviceError, match="limits of at least 256 bytes"):
        Device("cpu", **limits)


class Recorded:
    """A graph with a tensor of every kind, for the calls below."""

    def __init__(self, trained: int = 4) -> None:
        self.device = Device("cpu", threads=1)
        self.buffer = Buffer(self.device, 1 << 16)
        self.wrapped = Buffer(self.device, wrap=bytes(1 << 10))
        self.graph = g = Graph(self.device, 8, trained, F32)
        self.blocks = g.leaf(FROZEN, self.buffer, 0, Q4_0, 8, 32)
        self.row = g.leaf(FROZEN, self.buffer, 0, F32, 1, 32)
        self.short = g.leaf(FROZEN, self.buffer, 0, F32, 1, 8)
        self.weight = g.leaf(FROZEN, self.buffer, 0, F32, 32, 32)
        self.ids, self.index = g.input(I32, TOKENS), g.input(I32, TRAINED)
        self.wide = g.input(I32, TOKENS, 32)
        self.x = g.input(F32, TOKENS, 32)
        self.seen = g.input(I32, TOKENS, 2)
        self.table = g.rope_table(self.ids, self.short)

    def loss(self) -> int:
        return self.graph.loss(self.x, self.weight, self.index, self.index)

    def attend(self, q: int, n_head: int, n_kv_head: int, head_dim: int, seen: int | None = None) -> int:
        return self.graph.attention(
            q, self.x, self.x, self.seen if seen is None else seen, n_head=n_head, n_kv_head=n_kv_head,
            head_dim=head_dim, scale=1.0,
        )  # fmt: skip


WRONG: dict[str, Callable[[Recorded], object]] = {
    "a norm of blocks": lambda r: r.graph.rms_norm(r.blocks, r.row, 1e-5),
    "a norm of integers": lambda r: r.graph.rms_norm(r.wide, r.row, 1e-5),
    "a norm by blocks": lambda r: r.graph.rms_norm(r.x, r.blocks, 1e-5),
    "a product of blocks": lambda r: r.graph.linear(r.blocks, r.weight),
    "a product with integers": lambda r: r.graph.linear(r.x, r.wide),
    "a residual of blocks": lambda r: r.graph.linear(r.x, r.weight, residual=r.blocks),
    "a residual of integers": lambda r: r.graph.linear(r.x, r.weight, residual=r.wide),
    "a pair of blocks": lambda r: r.graph.linear(r.x, r.weight, lora=Lora(r.blocks, r.weight, 1.0)),
    "a pair of one": lambda r: r.graph.linear(r.x, r.weight, lora=Lora(r.weight, -1, 1.0)),
    "an embedding of integers": lambda r: r.graph.embed(r.wide, r.ids),
    "ids of floats": lambda r: r.graph.embed(r.weight, r.x),
    "a rotation of blocks": lambda r: r.graph.rope(r.blocks, r.table, 32, PAIRS),
    "a rotation by integers": lambda r: r.graph.rope(r.x, r.wide, 32, PAIRS),
    "a layout that is none": lambda r: r.graph.rope(r.x, r.table, 32, 7),
    "attention of blocks": lambda r: r.attend(r.blocks, 1, 1, 32),
    "attention by columns": lambda r: r.attend(r.x, 1, 1, 32, r.wide),
    "heads whose product wraps": lambda r: r.attend(r.x, (1 << 31) + 2 >> 1, 1, 32),
    "heads of no size": lambda r: r.attend(r.x, 1, 1, 0),
    "a cache that is frozen": lambda r: r.graph.append(r.weight, r.x, r.ids),
    "a cache of blocks": lambda r: r.graph.leaf(STATE, r.buffer, 0, Q4_0, 8, 32),
    "a cache in memory of the caller": lambda r: r.graph.leaf(STATE, r.wrapped, 0, F32, 2, 2),
    "parameters in memory of the caller": lambda r: r.graph.leaf(PARAM, r.wrapped, 0, F32, 2, 2),
    "a matrix beyond its buffer": lambda r: r.graph.leaf(FROZEN, r.buffer, 0, F32, (1 << 31) - 1, (1 << 31) - 1),
    "a matrix at an odd byte": lambda r: r.graph.leaf(FROZEN, r.buffer, 2, F32, 2, 2),
    "a kind that is none": lambda r: r.graph.leaf(9, r.buffer, 0, F32, 2, 2),
    "a gate of blocks": lambda r: r.graph.glu(r.blocks, r.blocks, SILU),
    "a gate that is none": lambda r: r.graph.glu(r.x, r.x, 5),
    "a sum of integers": lambda r: r.graph.add(r.wide, r.x),
    "a scale of blocks": lambda r: r.graph.scale(r.blocks, 2.0),
    "a soft-cap of integers": lambda r: r.graph.softcap(r.wide, 2.0),
    "rows of blocks": lambda r: r.graph.gather(r.blocks, r.index),
    "rows by floats": lambda r: r.graph.gather(r.x, r.x),
    "logits of integers": lambda r: r.graph.logits(r.x, r.wide, r.index),
    "a loss over blocks": lambda r: r.graph.loss(r.blocks, r.weight, r.index, r.index),
    "a loss at tokens": lambda r: r.graph.loss(r.x, r.weight, r.ids, r.index),
    "an input of no type": lambda r: r.graph.input(F16, TOKENS),
    "an input larger than memory": lambda r: r.graph.input(F32, (1 << 31) - 1, (1 << 31) - 1),
    "a tensor that is none": lambda r: r.graph.scale(999, 1.0),
    "a loss without a trained row": lambda r: Recorded(trained=0).loss(),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_an_op_refuses_operands_that_it_cannot_compute_with(what: str) -> None:
    with pytest.raises(DataError, match="do not fit together"):
        WRONG[what](Recorded())


class Training:
    """A plan that trains one matrix of 32 x 32, with what a step of it needs."""

    def __init__(self) -> None:
        self.r = r = Recorded()
        self.params, self.grads = Buffer(r.device, 4096), Buffer(r.device, 4096)
        self.m, self.v = Buffer(r.device, 4096), Buffer(r.device, 4096)
        self.param = r.graph.leaf(PARAM, self.params, 0, F32, 32, 32)
        self.nll = r.graph.loss(r.graph.linear(r.x, self.param), r.weight, r.index, r.index)
        self.plan = Plan(r.graph, self.params, self.grads)

    def feed(self, tokens: int = 5, trained: int = 3, **sizes: int) -> Feed:
        return Feed(tokens, trained, (
            np.zeros(sizes.get("ids", tokens), np.int32), np.zeros(trained, np.int32),
            np.zeros((tokens, 32), np.int32), np.ones((tokens, sizes.get("cols", 32)), np.float32),
            np.zeros((tokens, 2), np.int32),
        ))  # fmt: skip

    def optimizer(self) -> Optimizer:
        return Optimizer(self.m, self.v, [Range(0, 1024)], lr=0.1, t=1)


def test_gradients_and_state_of_another_size_are_refused_before_anything_is_written() -> None:
    t = Training()
    small, other = Buffer(t.r.device, 2048), Buffer(Device("cpu", threads=1), 4096)
    wrapped = Buffer(t.r.device, wrap=bytes(4096))
    for grads in (small, other, wrapped):
        with pytest.raises(DeviceError, match="gradients"):
            Plan(t.r.graph, t.params, grads)
    with pytest.raises(DeviceError, match="lies outside the parameters"):
        Plan(t.r.graph, t.m, t.grads)
    t.grads.write(np.full(1024, 7, np.float32))
    for part in ({"m": small}, {"v": small}, {"m": None}, {"v": wrapped}, {"ranges": [Range(1000, 25)]}):
        optimizer = t.optimizer()
        for name, value in part.items():
            setattr(optimizer, name, value)
        with pytest.raises(FabricError, match=r"state must be as large|outside the flat space"):
            t.plan.step([t.feed()], optimizer)
    assert np.all(t.grads.read() == 7), "a step that is refused wrote gradients"
    assert t.plan.step([t.feed()], t.optimizer()).finite


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 9}, "has room for 8 and 4"),
        ({"tokens": 0}, "has room for"),
        ({"trained": 5}, "has room for"),
        ({"ids": 4}, "input 0 of a feed has 16 bytes, not the 20"),
        ({"ids": 6}, "input 0 of a feed has 24 bytes"),
        ({"cols": 31}, "input 3 of a feed has 620 bytes, not the 640"),
    ],
)
def test_a_feed_must_have_the_rows_that_it_claims(change: dict[str, int], said: str) -> None:
    t = Training()
    for call in (lambda: t.plan.run(t.feed(**change)), lambda: t.plan.step([t.feed(**change)], t.optimizer())):
        with pytest.raises(FabricError, match=said):
            call()


def test_what_is_read_back_must_have_the_size_of_its_rows() -> None:
    t = Training()
    with pytest.raises(FabricError, match="none such to read"):
        t.plan.read(t.nll, 3, 1)  # before the first run
    t.plan.run(t.feed())
    assert t.plan.read(t.nll, 3, 1).shape == (3, 1)
    for rows, cols, first in ((3, 2, 0), (5, 1, 0), (1, 1, 4), (1, 1, -1)):
        with pytest.raises(FabricError, match=r"to read|are not"):
            t.plan.read(t.nll, rows, cols, first)
    with pytest.raises(FabricError, match="none such to read"):
        t.plan.read(t.r.table, 8, 16)  # its memory is another's by then
    with pytest.raises(FabricError, match="only read"):
        t.r.wrapped.write(np.zeros(4, np.float32))


def closed(t: Training, name: str) -> Training:
    """The same after a handle was closed."""
    getattr(t if hasattr(t, name) else t.r, name).close()
    return t


@pytest.mark.parametrize("name", ["device", "buffer", "params", "grads", "plan"])
def test_a_plan_of_closed_handles_does_not_run(name: str) -> None:
    t = closed(Training(), name)
    for call in (lambda: t.plan.run(t.feed()), lambda: t.plan.step([t.feed()], t.optimizer())):
        with pytest.raises(FabricError, match="closed"):
            call()
    t = Training()
    t.plan.run(t.feed())
    closed(t, name)
    with pytest.raises(FabricError, match="closed"):
        t.plan.read(t.nll, 3, 1)


AFTER_CLOSING: list[Callable[[Training], object]] = [
    lambda t: t.r.device.info,
    lambda t: t.r.device.peak("f32"),
    lambda t: t.m.read(0, 4),
    lambda t: t.m.write(np.zeros(1, np.float32)),
    lambda t: Buffer(t.r.device, 4),
    lambda t: Graph(t.r.device, 1, 1, F32),
    lambda t: t.r.graph.scale(t.r.x, 1.0),
    lambda t: t.r.graph.input(I32, TOKENS),
    lambda t: t.r.graph.leaf(FROZEN, t.m, 0, F32, 1, 1),
    lambda t: t.r.graph.keep(0),
    lambda t: Plan(t.r.graph),
    lambda t: t.plan.stats,
    lambda t: t.plan.describe(),
    lambda t: t.plan.run(t.feed()),
    lambda t: t.plan.read(0, 1, 1),
]


def test_handles_may_be_closed_in_any_order_and_are_then_refused() -> None:
    order = np.random.default_rng(3)
    names = ["device", "buffer", "wrapped", "graph", "params", "grads", "m", "plan"]
    for _ in range(30):
        t = Training()
        t.plan.run(t.feed())
        for name in order.permutation(names):
            closed(t, name)
        for call in AFTER_CLOSING:
            with pytest.raises(FabricError):
                call(t)
        assert (t.plan.tilings(), t.plan.op_stats()) == ([], [])
