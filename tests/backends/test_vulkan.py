"""What runs on the CPU runs on Vulkan with the same numbers: graphs, steps, and the commands of a user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fabric.core import BF16, F32, Buffer, Device, Optimizer, Range, devices
from tests.cli.conftest import tiny
from tests.cli.shell import fabric
from tests.core.test_plan import T, decoder, run
from tests.parity.ours import gradients
from tests.parity.rows import Row
from tests.support.compare import flat, relative_error
from tests.support.devices import VALIDATED, vulkan
from tests.support.paths import gemma3, smollm2
from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import Shape

__all__ = ["tiny"]

LOSSES = {F32: 1e-5, BF16: 0.1}


@pytest.mark.parametrize("precision", [F32, BF16])
@pytest.mark.parametrize("limit", [0, 3100])
def test_losses_and_gradients_are_the_cpus_whole_and_in_tiles(precision: int, limit: int) -> None:
    device = Device(vulkan(), max_binding_bytes=limit)
    want, got = run(Device("cpu", isa="generic"), precision), run(device, precision)
    assert (got[2].stats.tiled > 0) == (limit > 0)
    np.testing.assert_allclose(got[0], want[0], atol=LOSSES[precision])
    assert relative_error(got[1], want[1]) < (1e-5 if precision == F32 else 0.02)


def two_steps(name: str, kind: str) -> list[np.ndarray]:
    """Losses, norms and parameters after two optimizer steps of a small decoder."""
    device = Device(name)
    lab, _ = decoder(device)
    plan = lab.plan()
    lab.params.write(lab.values)
    m, v = Buffer(device, lab.params.nbytes), Buffer(device, lab.params.nbytes)
    optimizer = Optimizer(m, v, [Range(0, lab.used)], kind=kind, lr=1e-2, weight_decay=0.01, momentum=0.9, clip=1.0)
    told = []
    for t in (1, 2):
        optimizer.t = t
        result = plan.step([lab.feed(), lab.feed()], optimizer)
        told += [result.loss_sum / (2 * T), result.grad_norm]
    return [np.array(told), lab.params.read()]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_two_optimizer_steps_end_where_the_cpus_end(kind: str) -> None:
    for got, want in zip(two_steps(vulkan(), kind), two_steps("cpu", kind), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_same_run_gives_the_same_bits() -> None:
    one, two = run(Device(vulkan())), run(Device(vulkan()))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])


MODELS = {"smollm2": smollm2, "gemma3": gemma3}
SIZES = {
    "smollm2": {"attn_q": (576, 576), "attn_v": (192, 576), "ffn_down": (576, 1536)},
    "gemma3": {"attn_q": (1024, 640), "attn_v": (256, 640), "ffn_down": (640, 2048)},
}
LAYERS = {"smollm2": (0, 29), "gemma3": (0, 17)}
# Gemma's embedding is larger than what many drivers bind, 128 MiB.
LIMITS = {"smollm2": {"max_binding_bytes": 1 << 20, "max_allocation_bytes": 1 << 22}, "gemma3": {}}


@pytest.mark.parametrize("model", MODELS)
def test_a_real_model_in_tiles_has_the_cpus_gradients(model: str) -> None:
    random = np.random.default_rng(1)
    pairs = {
        f"blk.{i}.{name}.weight": (random.standard_normal((4, k)) / k**0.5, random.standard_normal((n, 4)) * 0.05)
        for i in LAYERS[model]
        for name, (n, k) in SIZES[model].items()
    }
    rows = [Row([1, 9906, 28, 457, 253, 6330, 30], [0, 1, 1, 1, 1, 1, 1]), Row([1, 504, 260, 2], [0, 0, 1, 1])]
    typed = {name: (a.astype(np.float32), b.astype(np.float32)) for name, (a, b) in pairs.items()}
    path = MODELS[model]()
    want = gradients(path, typed, 8.0, rows)
    got = gradients(path, typed, 8.0, rows, name=vulkan(), **LIMITS[model])
    np.testing.assert_allclose(got[0], want[0], atol=5e-4)
    assert relative_error(flat(got[1]), flat(want[1])) < 1e-4


def test_the_gradient_of_a_large_vocabulary_is_summed_to_its_end(tmp_path: Path) -> None:
    """llvmpipe leaves a thread's loops after 65,535 rounds."""
    shape = Shape(vocab=70_000, hidden=32, head_dim=8, layers=1)
    path = write_model(tmp_path / "wide.gguf", shape)
    pairs = random_pairs(shape, b_std=0.05)
    rows = [Row([1, 9, 28, 457, 253, 6330, 30], [0, 1, 1, 1, 1, 1, 1])]
    want, got = gradients(path, pairs, 8.0, rows), gradients(path, pairs, 8.0, rows, name=vulkan())
    assert relative_error(flat(got[1]), flat(want[1])) < 1e-5


def test_loops_that_a_driver_would_end_are_refused_before_they_run(tiny: Path) -> None:
    """llvmpipe again: attention over many keys cannot be parted."""
    if not any("llvmpipe" in device.name for device in devices() if device.backend == vulkan()):
        pytest.skip("the driver is not llvmpipe")
    done = fabric("devices", "--plan", "-m", tiny, "--ctx", "16384", "--device", "vulkan")
    assert done.code == 69 and "this driver ends them after 65535; use a smaller context." in done.err


def trained(tmp_path: Path, model: Path, device: str) -> tuple[list[float], str, int]:
    """Losses and gradient norms of two steps of the real command, what it said, and how many launches were tiles."""
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt":"1 + 1 =","completion":" 2"}\n{"prompt":"2 + 2 =","completion":" 4"}\n'
    )
    flags = (
        "train", "rows.jsonl", "-m", model, "-o", f"{device}.gguf", "--device", device, "--precision", "f32",
        "--lr", "2e-4", "--epochs", "1", "--batch", "1", "--ctx", "16",
    )  # fmt: skip
    planned = fabric(*flags, "--dry-run", "--json", cwd=tmp_path, timeout=900)
    assert planned.code == 0, planned.err
    done = fabric(
        *flags, "--metrics", "-", cwd=tmp_path, timeout=900,
        env={**VALIDATED, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.code == 0, done.err
    lines = [line for line in done.out.decode().splitlines() if line.startswith("{")]
    steps = [json.loads(line) for line in lines]
    assert len(steps) == 2
    told = done.out.decode() + done.err
    return [step[name] for step in steps for name in ("loss", "grad_norm")], told, json.loads(planned.out)["tiled"]


@pytest.mark.parametrize("model", MODELS)
def test_two_steps_of_a_real_model_through_the_command(model: str, tmp_path: Path) -> None:
    path = MODELS[model]()
    got, told, tiled = trained(tmp_path, path, vulkan())
    assert "Insert instance layer" in told
    assert "VUID" not in told
    if "llvmpipe" in told:
        assert tiled > 0  # a sum over the vocabulary exceeds its loops' limit, and Gemma's embedding its bindings'
    assert len(list((tmp_path / "cache" / "fabric").glob("kernels-*.bin"))) == 1
    np.testing.assert_allclose(got, trained(tmp_path, path, "cpu")[0], rtol=1e-4)
    for device in ("cpu", "vulkan"):
        done = fabric(
            "generate", "-m", path, "-a", "vulkan.gguf", "--device", device, "--precision", "f32", "--max-tokens",
            "4", "--raw", "--prompt", "The capital of France is", cwd=tmp_path, timeout=300,
        )  # fmt: skip
        assert done.code == 0, done.err
        (tmp_path / device).write_bytes(done.out)
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "vulkan").read_bytes() != b""


def test_a_missing_driver_is_a_sentence_and_its_own_exit_code(tmp_path: Path) -> None:
    nowhere = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}
    listed = fabric("devices", "--json", env=nowhere)
    assert listed.code == 0
    assert "vulkan" not in [d["backend"] for d in json.loads(listed.out)["devices"]]
    assert "Vulkan" in listed.err
    (tmp_path / "rows.jsonl").write_text('{"text":"one two three"}\n')
    refused = fabric(
        "train", tmp_path / "rows.jsonl", "-m", smollm2(), "-o", tmp_path / "a.gguf", "--device", "vulkan", env=nowhere
    )
    assert refused.code == 69
    assert "no Vulkan driver" in refused.err
    assert not (tmp_path / "a.gguf").exists()


READER = """
import mmap, sys
import numpy as np
from fabric.core import F32, FROZEN, Buffer, Device, Feed, Graph, Plan

def mine(kinds=("RssAnon", "RssShmem")):
    status = open("/proc/self/status").read().split()
    return sum(int(status[status.index(kind + ":") + 1]) for kind in kinds) << 10

with open(sys.argv[1], "rb") as file:
    map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
device = Device(sys.argv[2])
before = mine()
at, rows = 4096 + 32, 1 << 14  # the first number is not at the start of a page
weight = Buffer(device, wrap=map[at : at + rows * 4096])
graph = Graph(device, 4, 4, F32)
x = graph.input(F32, 4, 1024)
y = graph.keep(graph.linear(x, graph.leaf(FROZEN, weight, 0, F32, rows, 1024)))
plan = Plan(graph)
ones = np.ones((4, 1024), np.float32)
plan.run(Feed(4, 4, [ones]))
want = np.frombuffer(map, np.float32, rows * 1024, at).reshape(rows, 1024).sum(1, np.float64)
assert np.allclose(plan.read(y, 4, rows), want, rtol=1e-4, atol=1e-2)
print(weight.in_place(), mine() - before)
"""


def test_weights_of_a_mapped_file_are_used_where_they_lie(tmp_path: Path) -> None:
    """64 MiB that are multiplied by, and not in the process a second time. What the driver takes for itself, as for
    kernels that it builds, is a fraction of that."""
    path, size = tmp_path / "weights", (64 << 20) + 8192
    path.write_bytes(np.random.default_rng(1).standard_normal(size // 4, np.float32).tobytes())
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path), vulkan()], capture_output=True, text=True, check=False,
        env={**os.environ, **VALIDATED},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "VUID" not in done.stdout + done.stderr, done.stdout + done.stderr
    in_place, grown = done.stdout.split()[-2:]
    assert in_place == "True"
    assert int(grown) < 40 << 20
