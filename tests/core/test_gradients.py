"""If these fail, training follows a wrong gradient: backward of every op against finite differences of the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fabric.core import BILINEAR, GELU_TANH, HALVES, PAIRS, RELU2, SIGMOID, SILU, Device, Lora
from tests.core.harness import Lab, check_gradients

T = 7
LO = np.array([0, 0, 0, 3, 3, 3, 3])
HI = np.arange(1, T + 1)


@pytest.fixture(scope="module")
def device() -> Device:
    return Device("cpu", threads=2)


def embed(lab: Lab) -> int:
    ids, table = lab.ints(np.array([0, 4, 4, 2, 1, 0, 4])), lab.param(15, 6)
    parts = [lab.graph.embed(table, ids, 1.7, 3, part) for part in (0, 2)]
    return lab.loss(lab.graph.add(lab.graph.embed(lab.param(5, 6), ids, 1.7), lab.graph.glu(*parts, SILU)), 6)


def rms_norm(lab: Lab) -> int:
    return lab.loss(lab.graph.rms_norm(lab.param(T, 6), lab.param(1, 6), 1e-5), 6)


def rms_norm_of_heads(lab: Lab) -> int:
    return lab.loss(lab.graph.rms_norm(lab.param(T, 12), lab.param(1, 4), 1e-5), 12)


def linear(lab: Lab) -> int:
    y = lab.graph.linear(lab.param(T, 6), lab.param(5, 6), lab.param(1, 5), residual=lab.param(T, 5))
    return lab.loss(y, 5)


def linear_with_lora(lab: Lab) -> int:
    frozen = lab.frozen(lab.random.standard_normal((5, 6)).astype(np.float32))
    lora = Lora(lab.param(3, 6), lab.param(5, 3), 0.7)
    return lab.loss(lab.graph.linear(lab.param(T, 6), frozen, lora=lora), 5)


def two_linears_of_one_input(lab: Lab) -> int:
    x = lab.graph.linear(lab.param(T, 6), lab.param(8, 6))
    a = lab.graph.linear(x, lab.param(5, 8), lora=Lora(lab.param(2, 8), lab.param(5, 2), 1.0))
    b = lab.graph.linear(x, lab.param(5, 8))
    return lab.loss(lab.graph.add(a, b), 5)


def dropout(lab: Lab) -> int:
    """Two pairs that drop different elements of one input, and the head's."""
    x = lab.graph.linear(lab.param(T, 6), lab.param(8, 6))
    keys = lab.ints(np.arange(T) * 77777)
    a = lab.graph.linear(x, lab.param(5, 8), lora=Lora(lab.param(2, 8), lab.param(5, 2), 1.0, 0.4, keys))
    b = lab.graph.linear(x, lab.param(5, 8), lora=Lora(lab.param(3, 8), lab.param(5, 3), 0.7, 0.3, keys))
    y, head = lab.graph.add(a, b), Lora(lab.param(2, 5), lab.param(13, 2), 0.5, 0.5, keys)
    return lab.graph.loss(y, lab.param(13, 5), lab.index, lab.targets, head)


def rows_of_one_matrix(lab: Lab, dropout: float) -> int:
    """Two layers that are rows of one, so that they share the first matrix of its pair, and one with another pair."""
    x = lab.graph.linear(lab.param(T, 6), lab.param(8, 6))
    keys, a = lab.ints(np.arange(T) * 77777), lab.param(2, 8)
    parts = [
        lab.graph.linear(x, lab.param(5, 8), lora=Lora(one, lab.param(5, 2), 0.7, dropout, keys))
        for one in (a, a, lab.param(2, 8))
    ]
    return lab.loss(lab.graph.add(lab.graph.glu(parts[0], parts[1], SILU), parts[2]), 5)


def rope(lab: Lab, layout: int) -> int:
    frequencies = lab.frozen(np.array([[0.9, 0.3]], np.float32))
    table = lab.graph.rope_table(lab.ints(np.arange(T) * 3), frequencies, 1.0)
    return lab.loss(lab.graph.rope(lab.param(T, 12), table, 6, layout), 12)


def attention(lab: Lab, window: int = 0, softcap: float = 0.0) -> int:
    seen = lab.ints(np.stack((LO, HI), axis=1))
    o = lab.graph.attention(
        lab.param(T, 16), lab.param(T, 8), lab.param(T, 8), seen, n_head=4, n_kv_head=2, head_dim=4, scale=0.5,
        window=window, softcap=softcap,
    )  # fmt: skip
    return lab.loss(o, 16)


def conv(lab: Lab) -> int:
    """Twice over one input, of two segments, which have several readers then."""
    x, seen = lab.param(T, 6), lab.ints(np.stack((LO, HI), axis=1))
    y = lab.graph.conv(lab.graph.conv(x, lab.param(6, 3), seen, lab.param(1, 6)), lab.param(6, 4), seen)
    return lab.loss(lab.graph.glu(y, lab.graph.conv(x, lab.param(6, 8), seen), SILU), 6)


def delta(lab: Lab) -> int:
    """Two key heads, each read by two value heads, over two segments."""
    seen = lab.ints(np.stack((LO, HI), axis=1))
    gates = lab.graph.delta_gates(
        lab.param(T, 4), lab.param(T, 4), lab.frozen(-np.array([[0.1, 0.5, 1.0, 3.0]], np.float32)), seen
    )
    return lab.loss(lab.graph.delta(lab.param(T, 6), lab.param(T, 6), lab.param(T, 20), gates, 2), 20)


def part(lab: Lab) -> int:
    """Two parts of three heads that overlap."""
    x = lab.param(T, 15)
    return lab.loss(lab.graph.glu(lab.graph.part(x, 5, 0, 3), lab.graph.part(x, 5, 2, 3), SIGMOID), 9)


def glu(lab: Lab, kind: int) -> int:
    return lab.loss(lab.graph.glu(lab.param(T, 6), lab.param(T, 6), kind), 6)


def add_and_scale(lab: Lab) -> int:
    x = lab.param(T, 6)
    return lab.loss(lab.graph.add(lab.graph.scale(x, 1.3), x), 6)


def softcap(lab: Lab) -> int:
    return lab.loss(lab.graph.softcap(lab.param(T, 6, scale=3), 2.0), 6)


def gather(lab: Lab) -> int:
    return lab.loss(lab.graph.gather(lab.param(T, 6), lab.ints(np.array([6, 0, 0, 3, 2, 2, 2]))), 6)


def experts(lab: Lab, kind: str = "") -> int:
    """Four experts, of which each token has two. `kind`: what trains, or how x comes."""
    graph, x = lab.graph, lab.graph.linear(lab.param(T, 6), lab.param(8, 6))
    routing = graph.route(x, lab.param(4, 8, scale=3), 2)

    def weight(rows: int, cols: int) -> int:
        if kind == "whole":
            return lab.param(4 * rows, cols)
        return lab.frozen(lab.random.standard_normal((4 * rows, cols)).astype(np.float32))

    def lora(rows: int, cols: int) -> Lora:
        keys = lab.ints(np.arange(T) * 77777) if kind == "dropout" else -1
        pair = Lora(lab.param(4 * 3, cols), lab.param(4 * rows, 3), 0.7, 0.4 if keys >= 0 else 0.0, keys)
        return Lora(-1, -1, 0.0) if kind == "whole" else pair

    gate = graph.experts(x, weight(5, 8), routing, lora=lora(5, 8))
    up = graph.experts(x, weight(5, 8), routing, lora=lora(5, 8))
    down = graph.experts(graph.glu(gate, up, SILU), weight(8, 5), routing, lora=lora(8, 5))
    return lab.loss(graph.combine(down, routing, x), 8)


def head_with_softcap(lab: Lab) -> int:
    return lab.loss(lab.param(T, 6, scale=3), 6, softcap=1.5)


def head_that_trains(lab: Lab) -> int:
    head, lora = lab.param(13, 6), Lora(lab.param(2, 6), lab.param(13, 2), 0.5)
    return lab.graph.loss(lab.param(T, 6), head, lab.index, lab.targets, lora)


OPS: dict[str, Callable[[Lab], int]] = {
    "embed": embed,
    "rms_norm": rms_norm,
    "rms_norm_of_heads": rms_norm_of_heads,
    "linear": linear,
    "linear_with_lora": linear_with_lora,
    "two_linears_of_one_input": two_linears_of_one_input,
    "dropout": dropout,
    "rows_of_one_matrix": lambda lab: rows_of_one_matrix(lab, 0.0),
    "rows_of_one_matrix_with_dropout": lambda lab: rows_of_one_matrix(lab, 0.4),
    "rope_pairs": lambda lab: rope(lab, PAIRS),
    "rope_halves": lambda lab: rope(lab, HALVES),
    "attention": attention,
    "attention_window": lambda lab: attention(lab, window=2),
    "attention_softcap": lambda lab: attention(lab, softcap=1.5),
    "conv": conv,
    "delta": delta,
    "part": part,
    "silu": lambda lab: glu(lab, SILU),
    "relu2": lambda lab: glu(lab, RELU2),
    "bilinear": lambda lab: glu(lab, BILINEAR),
    "sigmoid": lambda lab: glu(lab, SIGMOID),
    "gelu": lambda lab: glu(lab, GELU_TANH),
    "add_and_scale": add_and_scale,
    "softcap": softcap,
    "gather": gather,
    "experts": experts,
    "experts_that_train": lambda lab: experts(lab, "whole"),
    "experts_with_dropout": lambda lab: experts(lab, "dropout"),
    "head_with_softcap": head_with_softcap,
    "head_that_trains": head_that_trains,
}


@pytest.mark.parametrize("name", OPS)
def test_gradient_is_the_slope_of_the_loss(device: Device, name: str) -> None:
    lab = Lab(device, T)
    check_gradients(lab, OPS[name](lab))
