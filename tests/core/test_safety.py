"""Nothing that a file or a caller asks for reaches outside its memory: it is computed, or refused in a sentence."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fabric.core import F32, FROZEN, HALVES, PAIRS, TOKENS, Buffer, Device, Graph, Plan
from tests.core.harness import Lab


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
