"""Any GGUF in: models of every type that weights have train, generate, merge and inspect as their F32 copies do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fabric.weights.formats import FORMATS
from fabric.weights.gguf import GGUF
from tests.cli.shell import fabric, one_sentence
from tests.support.devices import vulkan

gguf = pytest.importorskip("gguf", reason="the models are written by the gguf package")

WEIGHTS = [kind.name for kind in gguf.GGMLQuantizationType if FORMATS[int(kind)].decodes]
REST = [kind.name for kind in gguf.GGMLQuantizationType if not FORMATS[int(kind)].decodes]
RARE = [name for name in WEIGHTS if name.startswith(("IQ", "NV", "Q1"))]  # whose decoders are the least plain
MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TRAIN = ("--steps", "2", "--rank", "4", "--ctx", "64", "--batch", "4", "--precision", "f32")


def write_mixed(path: Path, types: Sequence[str], embedding: str) -> Path:
    """A model with a matrix of each type, and the next ones in turn where there is room."""
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    layers = -(-len(types) // len(MODULES))
    shape = Shape(hidden=256, layers=layers, heads=4, kv_heads=2, head_dim=64, ffn=512)
    places = [f"blk.{layer}.{module}" for layer in range(layers) for module in MODULES]
    chosen = {place: types[i % len(types)] for i, place in enumerate(places)}
    return write_model(path, shape, {"default": "F32", "token_embd": embedding, **chosen})


def losses(folder: Path, rows: Path, model: Path, name: str, device: str) -> list[float]:
    flags = ["--run-dir", f"run-{name}", "--metrics", f"{name}.jsonl", "--device", device, *TRAIN]
    done = fabric("train", rows, "-m", model, "-o", f"{name}-adapter.gguf", *flags, cwd=folder, timeout=400)
    assert done.code == 0, done.err
    return [json.loads(line)["loss"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_a_model_of_every_type_is_what_its_f32_copy_is(backend: str, rows: Path, tmp_path: Path) -> None:
    from tests.support.decoded import decoded_copy

    device = vulkan() if backend == "vulkan" else backend
    types = WEIGHTS if backend == "cpu" else RARE
    mixed = write_mixed(tmp_path / "mixed.gguf", types, "IQ2_S")
    plain = decoded_copy(mixed, tmp_path / "plain.gguf")
    told = json.loads(fabric("inspect", mixed, "--json").out)["types"]
    assert {*told, "F32"} == {*types, "F32"} and all(row["supported"] for row in told.values())
    ours, theirs = (losses(tmp_path, rows, model, model.stem, device) for model in (mixed, plain))
    assert ours == pytest.approx(theirs, rel=1e-6)
    answers = [
        fabric("generate", "-m", model, "--prompt", "the dog", "--raw", "--max-tokens", "8", "--temperature", "0",
               "--precision", "f32", "--device", device, "-a", tmp_path / "mixed-adapter.gguf", timeout=200)
        for model in (mixed, plain)
    ]  # fmt: skip
    assert answers[0].code == answers[1].code == 0, answers[0].err + answers[1].err
    assert answers[0].out == answers[1].out
    if backend != "cpu":
        return
    for model in (mixed, plain):
        merged = model.with_suffix(".merged")
        done = fabric("merge", "-m", model, "-a", tmp_path / "mixed-adapter.gguf", "-o", merged, "--type", "q8_0")
        assert done.code == 0, done.err
    with GGUF.open(mixed.with_suffix(".merged")) as this, GGUF.open(plain.with_suffix(".merged")) as other:
        assert all(this.data(name) == other.data(name) for name in this.tensors)


def test_tensors_that_hold_no_weights_are_listed_and_refused_by_their_type(rows: Path, tmp_path: Path) -> None:
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    shape = Shape(hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512)
    data = bytearray(write_model(tmp_path / "m.gguf", shape).read_bytes())
    for module, kind in zip(MODULES, REST, strict=True):
        number = gguf.GGMLQuantizationType[kind]
        name = f"blk.0.{module}.weight".encode()
        at = data.index(name) + len(name) + 4
        if gguf.GGML_QUANT_SIZES[number] == (1, 8):  # twice as wide as F32, in whose place it stands
            half = int.from_bytes(data[at + 8 : at + 16], "little") // 2
            data[at + 8 : at + 16] = half.to_bytes(8, "little")
        data[at + 16 : at + 20] = int(number).to_bytes(4, "little")
        (tmp_path / f"{kind}.gguf").write_bytes(data)
    types = json.loads(fabric("inspect", tmp_path / f"{REST[-1]}.gguf", "--json").out)["types"]
    assert {kind for kind, row in types.items() if not row["supported"]} == {*REST}
    done = fabric("train", rows, "-m", tmp_path / f"{REST[0]}.gguf", *TRAIN, cwd=tmp_path)
    one_sentence(done, 65, f"blk.0.attn_q.weight is {REST[0]}, a type that holds no weights")
