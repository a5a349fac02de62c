"""What laying work out differently must not change: checkpointing and threads nothing at all, tiles almost nothing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fabric.core import (
    BF16,
    F32,
    I32,
    PAIRS,
    SILU,
    TOKENS,
    Buffer,
    Cancelled,
    Device,
    Feed,
    Graph,
    Lora,
    Optimizer,
    Plan,
    Progress,
    Range,
)  # fmt: skip
from fabric.errors import DeviceError, FabricError
from tests.core.harness import VOCAB, Lab, check_gradients
from tests.support.devices import vulkan

T, WIDTH, HEADS = 24, 32, 4


def decoder(device: Device, blocks: int = 3, precision: int = F32, whole: bool = False) -> tuple[Lab, int]:
    """A small decoder whose every feed holds packed rows of 10 and 14: LoRA pairs on all its layers train, those of the
    gate with dropout, or (whole) every weight does, biases, norms, and an embedding that is the head too."""
    lab = Lab(device, T, precision)
    g = lab.graph
    ids = lab.ints(np.arange(T) * 7 % VOCAB)
    seen = lab.ints(np.stack((np.where(np.arange(T) < 10, 0, 10), np.arange(T) + 1), axis=1))
    positions = lab.ints(np.where(np.arange(T) < 10, np.arange(T), np.arange(T) - 10))

    def weight(rows: int, cols: int) -> int:
        if whole:
            return lab.param(rows, cols, cols**-0.5)
        return lab.frozen((lab.random.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32))

    def norm(x: int) -> int:
        return g.rms_norm(x, lab.param(1, WIDTH) if whole else lab.frozen(np.ones((1, WIDTH), np.float32)), 1e-5)

    def linear(x: int, rows: int, cols: int, residual: int = -1) -> int:
        if whole:
            return g.linear(x, weight(rows, cols), lab.param(1, rows, 0.1), residual=residual)
        dropout = 0.25 if rows == 48 else 0.0
        lora = Lora(lab.param(3, cols, cols**-0.5), lab.param(rows, 3, 0.1), 2.0, dropout, ids)
        return g.linear(x, weight(rows, cols), lora=lora, residual=residual)

    embedding = weight(VOCAB, WIDTH)
    x = g.embed(embedding, ids, 3.0)
    table = g.rope_table(positions, lab.frozen(np.array([[1.0, 0.3, 0.1, 0.03]], np.float32)))
    for _ in range(blocks):
        g.mark()
        h = norm(x)
        q, k = (g.rope(linear(h, rows, WIDTH), table, 8, PAIRS) for rows in (WIDTH, 16))
        o = g.attention(q, k, linear(h, 16, WIDTH), seen, n_head=HEADS, n_kv_head=2, head_dim=8, scale=8**-0.5)
        x = linear(o, WIDTH, WIDTH, residual=x)
        h = norm(x)
        x = linear(g.glu(linear(h, 48, WIDTH), linear(h, 48, WIDTH), SILU), WIDTH, 48, residual=x)
    g.mark()
    if not whole:
        return lab, lab.loss(x, WIDTH)
    return lab, g.loss(norm(x), embedding, lab.index, lab.targets)


def run(
    device: Device, precision: int = F32, whole: bool = False, **options: int | bool
) -> tuple[np.ndarray, np.ndarray, Plan]:
    """Losses and gradients of one feed."""
    lab, nll = decoder(device, precision=precision, whole=whole)
    plan = lab.plan(**options)
    lab.params.write(lab.values)
    plan.run(lab.feed())
    return plan.read(nll, T, 1), lab.grads.read(), plan


def test_gradients_of_all_weights_of_a_model_are_the_slope_of_its_loss() -> None:
    """Tied embedding, norms and biases included; logits come in chunks of 3 rows, so the head's gradient adds up."""
    lab, nll = decoder(Device("cpu", threads=2), blocks=1, whole=True)
    check_gradients(lab, nll)


def test_the_gradient_of_a_tied_embedding_is_that_of_both_its_uses() -> None:
    """The rows looked up and the head, each trained alone beside a frozen copy, add up to what both get together."""
    device, found = Device("cpu"), []
    for looked_up, head in ((True, False), (False, True), (True, True)):
        lab = Lab(device, T)
        values = lab.random.standard_normal((VOCAB, WIDTH)).astype(np.float32)
        lab.values[: values.size] = values.ravel()
        trained, frozen = lab.param(VOCAB, WIDTH, 0.0), lab.frozen(values)
        lab.values[: values.size] = values.ravel()
        x = lab.graph.embed(trained if looked_up else frozen, lab.ints(np.arange(T) * 7 % VOCAB), 1.7)
        lab.graph.loss(x, trained if head else frozen, lab.index, lab.targets)
        lab.params.write(lab.values)
        lab.plan(logits_bytes=4 * VOCAB * 5).run(lab.feed())
        found.append(lab.grads.read())
    assert np.abs(found[0]).max() > 0 and np.abs(found[1]).max() > 0
    np.testing.assert_allclose(found[0] + found[1], found[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("precision", [F32, BF16])
def test_checkpointing_changes_no_bit_and_saves_memory(precision: int, whole: bool) -> None:
    device = Device("cpu", threads=2)
    kept = run(device, precision, whole, checkpoint=False)
    recomputed = run(device, precision, whole, checkpoint=True)
    assert np.array_equal(kept[0], recomputed[0])
    assert np.array_equal(kept[1], recomputed[1])
    assert recomputed[2].stats.arena_bytes < kept[2].stats.arena_bytes


def test_dropout_takes_its_share_in_training_and_nothing_elsewhere() -> None:
    """The base is zero, the pair the identity: what comes out is what is left of a row of ones."""
    device, share = Device("cpu", threads=2), 0.3
    lab = Lab(device, 100)
    keys, one = lab.ints(np.arange(100) * 9973), lab.frozen(np.ones((100, 64), np.float32))
    zero, eye = lab.frozen(np.zeros((64, 64), np.float32)), np.eye(64, dtype=np.float32)
    pairs = [Lora(lab.frozen(eye), lab.frozen(eye), 1.0, share, keys) for _ in range(2)]
    pairs.append(pairs[1]._replace(b=lab.frozen(eye)))  # other rows of the same matrix
    left = [lab.graph.keep(lab.graph.linear(one, zero, lora=pair)) for pair in pairs]
    lab.loss(lab.graph.add(lab.graph.add(*left[:2]), lab.graph.add(left[2], lab.param(100, 64))), 64)
    training, scoring = lab.plan(), Plan(lab.graph)
    training.run(lab.feed())
    a, b, again = (training.read(t, 100, 64) for t in left)
    assert np.array_equal(b, again), "a pair sees its input once"
    for part in (a, b):
        assert set(np.unique(part)) == {0, np.float32(1 / (1 - np.float32(share)))}
        assert abs((part == 0).mean() - share) < 0.03 and (part == 0).mean(0).max() < 0.5 > (part == 0).mean(1).max()
    assert abs(((a == 0) & (b == 0)).mean() - share**2) < 0.03, "pairs must not drop the same elements"
    scoring.run(lab.feed())
    assert (scoring.read(left[0], 100, 64) == 1).all()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_no_bit(threads: int, whole: bool) -> None:
    one, many = run(Device("cpu", threads=1), whole=whole), run(Device("cpu", threads=threads), whole=whole)
    assert np.array_equal(one[0], many[0])
    assert np.array_equal(one[1], many[1])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("limit", [3100, 4096, 6000])
def test_a_forced_binding_limit_changes_nothing_but_the_layout(limit: int, whole: bool) -> None:
    untiled = run(Device("cpu"), whole=whole)
    tiled = run(Device("cpu", max_binding_bytes=limit), whole=whole)
    assert tiled[2].stats.tiled > 0
    assert ("linear_dw (tile)" if whole else "linear (tile)") in tiled[2].describe()
    np.testing.assert_allclose(tiled[0], untiled[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tiled[1], untiled[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("whole", "limit"), [(False, 4096), (True, 8192)])
@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_tensors_larger_than_an_allocation_change_nothing_but_the_layout(backend: str, whole: bool, limit: int) -> None:
    name = vulkan() if backend == "vulkan" else backend
    one = run(Device(name), whole=whole)
    parted = run(Device(name, max_allocation_bytes=limit), whole=whole)
    assert parted[2].stats.arena_bytes > limit
    assert (parted[2].stats.tiled > 0) == (limit == 4096), "frozen matrices and activations of 4,608 bytes are parted"
    np.testing.assert_allclose(parted[0], one[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parted[1], one[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_update_in_parts_is_the_update(kind: str) -> None:
    found = []
    for limit in (0, 8192):
        device = Device("cpu", max_allocation_bytes=limit)
        lab, _ = decoder(device, whole=True)
        lab.params.write(lab.values)
        seams = np.arange(4096, 1 << 17, 4096, dtype=np.uint64)
        m, v = (Buffer(device, lab.params.nbytes, seams=lambda _, s=seams: s) for _ in "mv")  # type: ignore[misc]
        plan = lab.plan()
        result = plan.step([lab.feed()] * 2, Optimizer(m, v, [Range(0, lab.used)], kind=kind, lr=1e-2, clip=1.0, t=1))
        found.append((result.grad_norm, lab.params.read()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
    assert np.abs(found[0][1] - lab.values).max() > 1e-3


def test_what_cannot_be_parted_is_refused_in_a_sentence() -> None:
    with pytest.raises(DeviceError, match="allocates at once"):
        Buffer(Device("cpu", max_allocation_bytes=4096), 8192)


def test_a_trained_embedding_beyond_the_binding_limit_is_cut_along_its_rows() -> None:
    def tied(**options: int) -> tuple[np.ndarray, str]:
        lab = Lab(Device("cpu", **options), T)
        embedding = lab.param(100, WIDTH)
        x = lab.graph.embed(embedding, lab.ints(np.arange(T) * 37 % 100))
        lab.graph.loss(x, embedding, lab.index, lab.targets)
        plan = lab.plan()
        lab.params.write(lab.values)
        plan.run(lab.feed())
        return lab.grads.read(), plan.describe()

    (whole, _), (cut, text) = tied(), tied(max_binding_bytes=3100)
    assert "embed_dw (tile)" in text and "linear_dw (tile)" in text
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-6)


def test_what_no_tile_can_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(DeviceError, match="limit of 256 bytes"):
        run(Device("cpu", max_binding_bytes=256))


@pytest.mark.parametrize("whole", [False, True])
def test_chunks_of_logits_change_nothing(whole: bool) -> None:
    device = Device("cpu")
    at_once, chunked = run(device, whole=whole), run(device, whole=whole, logits_bytes=4 * VOCAB * 5)
    assert chunked[2].stats.launches > at_once[2].stats.launches
    np.testing.assert_allclose(chunked[0], at_once[0], rtol=1e-6)
    np.testing.assert_allclose(chunked[1], at_once[1], rtol=1e-5, atol=1e-5)


def test_the_bytes_planned_are_the_bytes_allocated() -> None:
    stats = run(Device("cpu"))[2].stats
    assert stats.allocated_bytes == stats.arena_bytes + stats.scratch_bytes + stats.input_bytes


def test_a_frozen_model_has_no_backward_pass_below_its_lowest_pair() -> None:
    device = Device("cpu")
    lab = Lab(device, T)
    g = lab.graph
    frozen = lab.frozen(np.eye(WIDTH, dtype=np.float32))
    x = g.embed(lab.frozen(np.ones((VOCAB, WIDTH), np.float32)), lab.ints(np.zeros(T)))
    for _ in range(4):
        x = g.linear(x, frozen)
    x = g.linear(x, frozen, lora=Lora(lab.param(2, WIDTH), lab.param(WIDTH, 2), 1.0))
    lab.loss(x, WIDTH)
    backward = [line for line in lab.plan().describe().splitlines() if line.startswith("linear_dx")]
    assert len(backward) == 2  # through the head, and to the low-rank side of the one pair


def optimizer_for(lab: Lab, lr: float) -> Optimizer:
    m, v = (Buffer(lab.device, lab.params.nbytes) for _ in range(2))
    return Optimizer(m, v, [Range(0, len(lab.values))], lr=lr, clip=1.0, t=1)


@pytest.mark.parametrize("whole", [False, True])
def test_two_feeds_of_a_step_are_one_larger_batch(whole: bool) -> None:
    """The gradient is divided once by the tokens of all feeds, however they are split."""
    device = Device("cpu")
    lab, _ = decoder(device, whole=whole)
    lab.params.write(lab.values)
    plan, feed = lab.plan(), lab.feed()
    once = plan.step([feed], optimizer_for(lab, 0.0))
    grads = lab.grads.read()
    twice = plan.step([feed, feed], optimizer_for(lab, 0.0))
    assert twice.trained == 2 * once.trained
    assert twice.grad_norm == pytest.approx(once.grad_norm, rel=1e-6)
    np.testing.assert_allclose(lab.grads.read(), 2 * grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_gradients_summed_over_two_plans_are_those_of_one_with_all_feeds(backend: str) -> None:
    """What a run on several devices does: each accumulates its own feeds, gradients and sums add up, all update."""
    name = vulkan() if backend == "vulkan" else backend

    def ready() -> tuple[Lab, Plan, Optimizer]:
        lab, _ = decoder(Device(name, threads=1))
        lab.params.write(lab.values)
        return lab, lab.plan(), optimizer_for(lab, 0.01)

    long = decoder(Device("cpu"))[0].feed()
    feeds = [long, Feed(10, 4, tuple(a[:4] if i < 2 else a[:10] for i, a in enumerate(long.inputs)))]
    lab, plan, optimizer = ready()
    whole = plan.step(feeds, optimizer)
    parts = [ready() for _ in feeds]
    for (_, part, _), feed in zip(parts, feeds, strict=True):
        part.accumulate([feed])
    grads = sum(part.grads.read() for part, _, _ in parts)
    sums = sum(part.sums() for _, part, _ in parts)
    ended = []
    for one, part, its in parts:
        one.grads.write(grads)
        part.set_sums(sums)
        result = part.update(its)
        assert result.trained == whole.trained == T + 4 and result.finite
        assert result.loss_sum == pytest.approx(whole.loss_sum, rel=1e-6)
        assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
        ended.append(one.params.read())
    assert np.array_equal(ended[0], ended[1])
    np.testing.assert_allclose(ended[0], lab.params.read(), rtol=1e-4, atol=1e-5)
    assert np.abs(ended[0] - lab.values).max() > 1e-3


def test_the_loss_of_many_feeds_keeps_its_digits() -> None:
    lab, nll = decoder(Device("cpu"), blocks=1)
    lab.params.write(lab.values)
    plan, feed = lab.plan(), lab.feed()
    plan.run(feed)
    once = float(plan.read(nll, T, 1).sum(dtype=np.float64))
    result = plan.step([feed] * 1000, optimizer_for(lab, 0.0))
    assert result.trained == 1000 * T
    assert result.loss_sum == pytest.approx(1000 * once, rel=1e-11)


def test_steps_lower_the_loss() -> None:
    lab, _ = decoder(Device("cpu"))
    lab.params.write(lab.values)
    plan, optimizer = lab.plan(), optimizer_for(lab, 0.02)
    losses = []
    for t in range(1, 31):
        optimizer.t = t
        losses.append(plan.step([lab.feed()], optimizer).loss_sum / T)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_loss_that_is_no_number_updates_nothing(kind: str) -> None:
    lab, _ = decoder(Device("cpu"))
    lab.values[0] = np.inf
    lab.params.write(lab.values)
    optimizer = optimizer_for(lab, 0.1)
    optimizer.kind = kind
    assert optimizer.m is not None and optimizer.v is not None
    optimizer.m.write(lab.values[::-1].copy())
    plan = lab.plan()
    result = plan.step([lab.feed()], optimizer)
    assert not result.finite
    assert np.array_equal(lab.params.read(), lab.values)
    assert np.array_equal(optimizer.m.read(), lab.values[::-1]) and not optimizer.v.read().any()
    lab.values[0] = 1
    lab.params.write(lab.values)
    assert plan.step([lab.feed()], optimizer).finite, "the step after it starts afresh"
    assert not np.array_equal(lab.params.read(), lab.values)


def test_a_gradient_that_is_no_number_updates_nothing() -> None:
    """The sum of squares of finite gradients may be infinite too."""
    lab, _ = decoder(Device("cpu"))
    lab.params.write(lab.values)
    plan, optimizer = lab.plan(), optimizer_for(lab, 0.1)
    plan.accumulate([lab.feed()])
    lab.grads.write(np.full(3, 1e30, np.float32), 40)
    result = plan.update(optimizer)
    assert not result.finite and np.isfinite(result.loss_sum)
    assert np.array_equal(lab.params.read(), lab.values)


@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_a_step_cancelled_anywhere_leaves_parameters_and_moments_alone(backend: str) -> None:
    """Wherever it is stopped: the step after it is the one that would have been."""
    device = Device(vulkan() if backend == "vulkan" else backend)
    lab, _ = decoder(device)
    lab.params.write(lab.values)
    plan, optimizer = lab.plan(), optimizer_for(lab, 0.01)
    feeds = [lab.feed()] * (30 if backend == "cpu" else 3)  # long enough to be stopped in
    assert optimizer.m is not None and optimizer.v is not None
    state = (lab.params, optimizer.m, optimizer.v)

    def reset() -> None:
        for buffer in state:
            buffer.write(np.zeros_like(lab.values) if buffer is not lab.params else lab.values)

    result = plan.step(feeds, optimizer)
    want = [buffer.read() for buffer in state]
    stopped = 0
    with ThreadPoolExecutor(1) as worker:
        for part in range(40):
            reset()
            progress = Progress()
            if part == 0:
                progress.cancel()
            step = worker.submit(plan.step, feeds, optimizer, progress)
            while progress.fraction < part / 40 and not step.done():
                pass
            progress.cancel()
            try:
                step.result()
            except Cancelled:
                stopped += 1
                for buffer, before in zip(state, (lab.values, 0 * lab.values, 0 * lab.values), strict=True):
                    assert np.array_equal(buffer.read(), before)
            else:
                assert np.array_equal(lab.params.read(), want[0])
        accumulated = Progress()
        reset()
        plan.accumulate(feeds, accumulated)
        accumulated.cancel()
        with pytest.raises(Cancelled):
            plan.update(optimizer, accumulated)
        assert np.array_equal(lab.params.read(), lab.values)
        reset()
        assert plan.step(feeds, optimizer) == result
        for buffer, after in zip(state, want, strict=True):
            assert np.array_equal(buffer.read(), after)
    assert stopped > 5


def test_an_optimizer_may_change_from_step_to_step() -> None:
    """Settings, ranges and buffers are those of the call, whatever was prepared before."""

    def after(changes: list[dict[str, Any]]) -> np.ndarray:
        lab, _ = decoder(Device("cpu"))
        lab.params.write(lab.values)
        plan, optimizer = lab.plan(), optimizer_for(lab, 0.01)
        for values in changes:
            for name, value in values.items():
                setattr(optimizer, name, value)
            plan.step([lab.feed()], optimizer)
        return lab.params.read()

    changes: list[dict[str, Any]] = [
        {"lr": 0.02}, {"clip": 1e-3}, {"beta1": 0.5}, {"t": 7}, {"kind": "sgd", "momentum": 0.5},
        {"weight_decay": 0.3}, {"ranges": [Range(0, 64), Range(64, 1 << 14, 0.5)]}, {"ranges": [Range(0, 64, 2.0)]},
    ]  # fmt: skip
    seen = [after(changes[:n]) for n in range(len(changes) + 1)]
    for n in range(1, len(changes)):
        assert np.abs(after([*changes[:n], {}]) - seen[n + 1]).max() > 1e-7, changes[n]


def test_a_running_step_hears_a_cancel() -> None:
    lab, _ = decoder(Device("cpu"))
    lab.params.write(lab.values)
    plan, running = lab.plan(), Progress()
    stop = threading.Thread(target=lambda: (time.sleep(0.05), running.cancel()))
    stop.start()
    with pytest.raises(Cancelled):
        for _ in range(100000):
            plan.step([lab.feed()], optimizer_for(lab, 0.0), running)
    stop.join()


def test_a_cancel_is_heard_inside_a_long_launch() -> None:
    rows, width = 1 << 16, 64  # seconds of work in one launch
    device = Device("cpu")
    graph = Graph(device, rows, rows, F32)
    q, k, v = (graph.input(dtype=F32, rows=TOKENS, cols=width) for _ in range(3))
    graph.keep(graph.attention(q, k, v, graph.input(I32, TOKENS, 2), n_head=1, n_kv_head=1, head_dim=width, scale=1.0))
    plan, progress = Plan(graph), Progress()
    at = np.arange(rows, dtype=np.int32)
    ones = np.ones((rows, width), np.float32)
    feed = Feed(rows, 0, (ones, ones, ones, np.stack((np.zeros_like(at), at + 1), axis=1)))
    stop = threading.Thread(target=lambda: (time.sleep(0.3), progress.cancel()))
    began = time.monotonic()
    stop.start()
    with pytest.raises(Cancelled):
        plan.run(feed, progress)
    stop.join()
    assert time.monotonic() - began < 1.3


def test_a_short_feed_costs_and_returns_its_own_rows_only() -> None:
    lab, nll = decoder(Device("cpu"))
    lab.params.write(lab.values)
    plan, full = lab.plan(), lab.feed()
    plan.run(full)
    losses = plan.read(nll, T, 1)
    short = Feed(10, 10, tuple(array[:10] for array in full.inputs))
    plan.run(short)
    np.testing.assert_allclose(plan.read(nll, 10, 1), losses[:10], rtol=1e-6)


@pytest.mark.parametrize(("which", "value"), [(0, T), (0, -1), (1, VOCAB), (2, VOCAB), (3, -1), (3, T + 1)])
def test_a_feed_cannot_reach_beyond_a_matrix(which: int, value: int) -> None:
    lab, _ = decoder(Device("cpu"))
    plan, feed = lab.plan(), lab.feed()
    inputs = [array.copy() for array in feed.inputs]
    inputs[which].flat[3] = value
    with pytest.raises(FabricError, match=f"holds {value}, which is not in 0"):
        plan.run(Feed(T, T, inputs))
