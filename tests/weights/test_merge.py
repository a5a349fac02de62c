"""Adapters, merge, quantize: what was trained must reach the model file, and stock llama.cpp must agree."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from fabric.errors import DataError, FabricError, OutputError, UsageError
from fabric.weights.adapter import Adapter, LoraPair, check_adapter, read_adapter, write_adapter
from fabric.weights.formats import BY_NAME
from fabric.weights.gguf import GGUF, TensorSpec, decode_tensor, write_gguf
from fabric.weights.history import read_history, step
from fabric.weights.inspect import summary
from fabric.weights.merge import merge
from fabric.weights.mix import type_names
from fabric.weights.quantize import quantize
from fabric.weights.settings import AdapterInput, MergeSettings, QuantizeSettings
from tests.cli.shell import fabric, one_sentence
from tests.support import llama_cpp
from tests.support.compare import mean_kl, relative_error
from tests.support.paths import smollm2
from tests.support.random_models import Array, random_pairs, write_model
from tests.support.shapes import Shape

SHAPE = Shape()
MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
stock = pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")


def adapter(pairs: Mapping[str, tuple[Array, Array]], alpha: float = 8.0, **more: object) -> Adapter:
    return Adapter("llama", alpha, {name: LoraPair(a, b) for name, (a, b) in pairs.items()}, **more)  # type: ignore[arg-type]


def save(path: Path, what: Adapter) -> Path:
    with path.open("wb") as out:
        write_adapter(out, what)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base.gguf", SHAPE, {"default": "Q8_0", "attn_v": "F16", "ffn_up": "F32"})


@pytest.fixture
def pairs() -> dict[str, tuple[Array, Array]]:
    return random_pairs(SHAPE, rank=4, b_std=0.2, modules=("attn_q", "attn_v", "ffn_up"))


@pytest.fixture
def tuned(tmp_path: Path, pairs: dict[str, tuple[Array, Array]]) -> Path:
    return save(tmp_path / "a.gguf", adapter(pairs, history=[step("train", {"rank": 4}, {"model": "m"}, seed=42)]))


def merged(tmp_path: Path, model: Path, *adapters: Path | AdapterInput, type: str = "bf16", threads: int = 2) -> Path:
    inputs = tuple(given if isinstance(given, AdapterInput) else AdapterInput(str(given)) for given in adapters)
    out = tmp_path / f"merged-{type}-{threads}.gguf"
    merge(MergeSettings(str(model), inputs, str(out), type, threads))
    return out


def quantized(tmp_path: Path, model: Path, type: str, threads: int = 2) -> Path:
    out = tmp_path / f"quantized-{type}-{threads}.gguf"
    quantize(QuantizeSettings(str(model), str(out), type, threads=threads))
    return out


def types_of(path: Path) -> dict[str, str]:
    with GGUF.open(path) as file:
        return {name: info.type_name for name, info in file.tensors.items()}


# ---- adapters ----


def test_an_adapter_comes_back_as_it_was_written(tmp_path: Path, pairs: dict[str, tuple[Array, Array]]) -> None:
    history = [step("train", {"rank": 4, "lr": 1e-4}, {"model": "abc", "data": "def"}, seed=42)]
    written = adapter(pairs, 16.0, name="mine", base_sha256="f" * 64, history=history)
    found = read_adapter(save(tmp_path / "a.gguf", written))
    assert (found.architecture, found.alpha, found.rank, found.name) == ("llama", 16.0, 4, "mine")
    assert (found.base_sha256, found.history) == ("f" * 64, history)
    assert found.scale("blk.0.attn_q.weight") == 4.0
    for name, (a, b) in pairs.items():
        assert (found.pairs[name].a == a).all()
        assert (found.pairs[name].b == b).all()


def test_adapters_of_others_in_16_bits_or_blocks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    a, b = np.ones((32, 64), "<f2"), np.zeros((8, 32), "<f2")
    q8 = b"\0\x3c" + b"\2" * 32  # 1.0 * 2
    specs = [
        TensorSpec("x.weight.lora_a", BY_NAME["F16"].type, a.shape),
        TensorSpec("x.weight.lora_b", BY_NAME["F16"].type, b.shape),
        TensorSpec("y.weight.lora_b", BY_NAME["Q8_0"].type, (3, 32)),
        TensorSpec("y.weight.lora_a", BY_NAME["F16"].type, a.shape),
    ]
    metadata = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "qwen3"}
    with path.open("wb") as out:
        write_gguf(out, metadata, specs, [a.data, b.data, q8 * 3, a.data])
    found = read_adapter(path)
    assert (found.pairs["x.weight"].a == 1).all()
    assert (found.pairs["y.weight"].b == 2).all()
    assert found.scale("x.weight") == 1.0  # no alpha given


def write_raw(path: Path, tensors: Mapping[str, Array], **metadata: object) -> Path:
    values = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", **metadata}
    with path.open("wb") as out:
        specs = [TensorSpec(name, 0, array.shape) for name, array in tensors.items()]
        write_gguf(out, values, specs, (np.ascontiguousarray(array, "<f4").data for array in tensors.values()))
    return path


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "sentence"),
    [
        ({}, {"general.type": "model"}, "not a LoRA adapter"),
        ({}, {"adapter.type": "other"}, "not a LoRA adapter"),
        ({}, {}, "without tensors"),
        ({"w.lora_a": ones(2, 8)}, {}, "lacks w.lora_b"),
        ({"w.lora_b": ones(2, 8)}, {}, "lacks w.lora_a"),
        ({"w.lora_a": ones(2, 8), "w.lora_b": ones(4, 3)}, {}, "are not"),
        ({"w.lora_a": ones(8), "w.lora_b": ones(4, 8)}, {}, "are not"),
        ({"w.lora_a": ones(2, 8), "w.lora_b": ones(4, 2), "x_norm.weight": ones(4)}, {}, "neither"),
        ({"w.lora_a": ones(2, 8) * np.nan, "w.lora_b": ones(4, 2)}, {}, "NaN"),
        ({"w.lora_a": ones(2, 8), "w.lora_b": ones(4, 2)}, {"adapter.lora.alpha": float("inf")}, "alpha is inf"),
        ({"w.lora_a": ones(2, 8), "w.lora_b": ones(4, 2)}, {"adapter.alora.invocation_tokens": [1]}, "activated"),
        ({"w.lora_a": ones(2, 8), "w.lora_b": ones(4, 2)}, {"fabric.history": ["[1]"]}, "JSON object"),
        ({"w.lora_a": ones(2, 8), "w.lora_b": ones(4, 2)}, {"fabric.history": ["[" * 100_000]}, "JSON object"),
    ],
)
def test_a_file_that_is_no_sound_adapter_is_refused(
    tmp_path: Path, tensors: dict[str, Array], metadata: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        read_adapter(write_raw(tmp_path / "a.gguf", tensors, **metadata))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "qwen3"}, "for qwen3 models, but .* is a llama model"),
        ({"pairs": {"blk.9.attn_q.weight": LoraPair(ones(2, 64), ones(64, 2))}}, r"changes blk\.9\.attn_q\.weight"),
        ({"pairs": {"blk.0.attn_q.weight": LoraPair(ones(2, 32), ones(64, 2))}}, "another base: .* 64 x 64 .* 64 x 32"),
        ({"pairs": {"output.weight": LoraPair(ones(2, 64), ones(320, 2))}}, r"tied to token_embd\.weight"),
        ({"pairs": {"token_embd.weight": LoraPair(ones(2, 64), ones(320, 2))}}, "embedding are not supported"),
    ],
)
def test_an_adapter_of_another_base_is_refused(base: Path, change: dict[str, object], sentence: str) -> None:
    given = {"architecture": "llama", "alpha": 1.0, "pairs": {}, **change}
    with GGUF.open(base) as model, pytest.raises(DataError, match=sentence):
        check_adapter(Adapter(**given), model)  # type: ignore[arg-type]


# ---- merge ----


def test_a_merged_weight_is_base_plus_every_scaled_change(
    tmp_path: Path, base: Path, tuned: Path, pairs: dict[str, tuple[Array, Array]]
) -> None:
    path = merged(tmp_path, base, tuned, AdapterInput(str(tuned), -0.25), type="f32")
    with GGUF.open(base) as before, GGUF.open(path) as after:
        assert list(after.tensors) == list(before.tensors)
        for name in before.tensors:
            want = decode_tensor(before, name).astype(np.float64)
            if name in pairs:
                a, b = (part.astype(np.float64) for part in pairs[name])
                want = want + (1 - 0.25) * (8.0 / 4) * (b @ a)
            assert relative_error(decode_tensor(after, name), want) < 1e-6


def test_merge_writes_bf16_for_what_changed_or_was_quantized_and_copies_the_rest(
    tmp_path: Path, base: Path, tuned: Path
) -> None:
    path = merged(tmp_path, base, tuned)
    types = types_of(path)
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert {types[f"blk.0.{module}.weight"] for module in MODULES} == {"BF16"}
    other = save(tmp_path / "q.gguf", adapter(random_pairs(SHAPE, b_std=0.1, modules=("attn_q",))))
    types = types_of(merged(tmp_path, base, other))
    assert (types["blk.0.attn_v.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "F32")


def test_keep_leaves_every_type_and_every_untouched_byte(
    tmp_path: Path, base: Path, tuned: Path, pairs: dict[str, tuple[Array, Array]]
) -> None:
    path = merged(tmp_path, base, tuned, type="keep")
    assert types_of(path) == types_of(base)
    with GGUF.open(base) as before, GGUF.open(path) as after:
        for name in before.tensors:
            assert (before.data(name) == after.data(name)) == (name not in pairs)
        for key in before.metadata:
            assert after.raw_metadata[key] == before.raw_metadata[key]


def test_a_model_remembers_how_it_was_made(tmp_path: Path, base: Path, tuned: Path) -> None:
    path = quantized(tmp_path, merged(tmp_path, base, tuned, tuned), "q8_0")
    with GGUF.open(path) as file, GGUF.open(base) as model, GGUF.open(tuned) as change:
        trained, merge_step, quantize_step = read_history(file)
        assert (trained["command"], trained["seed"]) == ("train", 42)
        assert merge_step["inputs"] == {"model": model.sha256(), "adapters": [change.sha256()] * 2}
        assert (quantize_step["command"], quantize_step["settings"]) == ("quantize", {"type": "q8_0"})
        assert str(tmp_path) not in json.dumps(read_history(file))


@pytest.mark.parametrize("type", ["bf16", "q4_0"])
def test_the_same_bytes_come_whatever_the_threads(tmp_path: Path, type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(hidden=128, ffn=320, vocab=2000)
    base = write_model(tmp_path / "base.gguf", shape, "Q8_0")
    tuned = save(tmp_path / "a.gguf", adapter(random_pairs(shape, b_std=0.1)))
    monkeypatch.setattr("fabric.weights.rewrite._PIECE_ELEMENTS", 5000)
    one, three = (merged(tmp_path, base, tuned, type=type, threads=threads) for threads in (1, 3))
    assert one.read_bytes() == three.read_bytes()
    assert quantized(tmp_path, one, "q5_1", 1).read_bytes() == quantized(tmp_path, one, "q5_1", 3).read_bytes()


def test_merge_streams_into_quantize(tmp_path: Path, base: Path, tuned: Path) -> None:
    code = """if 1:
    import sys
    from fabric.weights.merge import merge
    from fabric.weights.quantize import quantize
    from fabric.weights.settings import *
    if sys.argv[1] == "merge": merge(MergeSettings(sys.argv[2], (AdapterInput("-"),), "-"))
    else: quantize(QuantizeSettings("-", sys.argv[2], "q4_0"))
    """
    out = tmp_path / "piped.gguf"
    command = f'cat {tuned} | "$PYTHON" -c "$CODE" merge {base} | "$PYTHON" -c "$CODE" quantize {out}'
    env = {**os.environ, "CODE": code, "PYTHON": sys.executable}
    subprocess.run(command, shell=True, env=env, check=True)
    assert out.read_bytes() == quantized(tmp_path, merged(tmp_path, base, tuned), "q4_0").read_bytes()


def test_a_short_stream_is_refused(tmp_path: Path, base: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(base.read_bytes()[:-2000])
    with pytest.raises(DataError, match="cut short"):
        quantized(tmp_path, cut, "q4_0")
    assert not list(tmp_path.glob("*quantized*"))


def test_the_mean_of_adapters_is_weighted_and_remembers_all(tmp_path: Path, base: Path) -> None:
    made = [random_pairs(SHAPE, rank=4, b_std=0.2, modules=("attn_q", "ffn_up"), seed=seed) for seed in (1, 2)]
    files = [
        save(tmp_path / f"{i}.gguf", adapter(pairs, history=[step("train", {"rank": 4}, {"rows": str(i)}, seed=i)]))
        for i, pairs in enumerate(made)
    ]
    done = fabric(
        "merge", "--average", "-a", f"{files[0]}=300", "-a", f"{files[1]}=100", "-o", "mean.gguf", cwd=tmp_path
    )
    assert done.code == 0, done.err
    mean = read_adapter(tmp_path / "mean.gguf")
    assert mean.alpha == 8.0 and set(mean.pairs) == set(made[0])
    for name, pair in mean.pairs.items():
        for got, first, second in zip((pair.a, pair.b), made[0][name], made[1][name], strict=True):
            np.testing.assert_allclose(got, 0.75 * first + 0.25 * second, atol=1e-6)
    assert [made["command"] for made in mean.history] == ["train", "train", "merge"]
    again = fabric("merge", "-m", base, "-a", "mean.gguf", "-o", "m.gguf", cwd=tmp_path)
    assert again.code == 0, again.err
    other = save(tmp_path / "other.gguf", adapter(random_pairs(SHAPE, rank=2, modules=("attn_q", "ffn_up"))))
    for flags, code, words in (
        (("-a", files[0]), 2, "two"),
        (("-a", files[0], "-a", f"{files[1]}=0"), 2, "above 0"),
        (("-a", files[0], "-a", files[1], "-m", base), 2, "no --model"),
        (("-a", files[0], "-a", files[1], "--type", "q8_0"), 2, "no --type q8_0"),
        (("-a", files[0], "-a", files[1], "--errors"), 2, "encodes nothing"),
        (("-a", files[0], "-a", other), 65, "rank"),
    ):
        one_sentence(fabric("merge", "--average", *flags, "-o", "none.gguf", cwd=tmp_path), code, words)
    one_sentence(fabric("merge", "-a", files[0], "-o", "none.gguf", cwd=tmp_path), 2, "give one with -m")
    assert not (tmp_path / "none.gguf").exists()


def test_bad_requests_leave_no_file(tmp_path: Path, base: Path, tuned: Path) -> None:
    out = str(tmp_path / "out.gguf")
    a = (AdapterInput(str(tuned)),)
    requests: list[tuple[type[FabricError], MergeSettings]] = [
        (UsageError, MergeSettings(str(base), (), out)),
        (UsageError, MergeSettings(str(base), a, out, "q9_9")),
        (UsageError, MergeSettings("-", (AdapterInput("-"),), out)),
        (DataError, MergeSettings(str(tuned), a, out)),
        (DataError, MergeSettings(str(base), (AdapterInput(str(base)),), out)),
        (OutputError, MergeSettings(str(base), a, str(tmp_path / "no" / "out.gguf"))),
        (OutputError, MergeSettings(str(base), a, "/dev/full")),
    ]
    for error, settings in requests:
        with pytest.raises(error):
            merge(settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "base.gguf"]


def test_progress_ends_at_the_total(tmp_path: Path, base: Path, tuned: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = MergeSettings(str(base), (AdapterInput(str(tuned)),), str(tmp_path / "o.gguf"))
    result = merge(settings, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (result.to_bytes, result.to_bytes)
    assert (tmp_path / "o.gguf").stat().st_size == result.file_bytes


# ---- quantize ----


LOSES = {
    "f32": 0.0, "f16": 3e-4, "bf16": 2e-3, "q8_0": 7e-3, "q6_k": 0.02, "q5_0": 0.06, "q5_1": 0.05, "q5_k": 0.04,
    "q4_0": 0.11, "q4_1": 0.1, "q4_k": 0.08, "q5_k_s": 0.04, "q5_k_m": 0.04, "q4_k_s": 0.08, "q4_k_m": 0.08,
}  # fmt: skip
FILE_TYPES = {"f32": "ALL_F32", "q4_k": "MOSTLY_Q4_K_S", "q5_k": "MOSTLY_Q5_K_S"}


def test_every_type_that_can_be_asked_for_is_tested() -> None:
    assert set(LOSES) == set(type_names())


@pytest.mark.parametrize("type", LOSES)
def test_each_type_decodes_to_the_weights_it_was_made_of(tmp_path: Path, type: str) -> None:
    shape = Shape(hidden=256, heads=4, kv_heads=2, head_dim=64, ffn=512, tied=False)
    base = write_model(tmp_path / "base.gguf", shape, "F32")
    result = quantize(QuantizeSettings(str(base), str(tmp_path / "q.gguf"), type))
    assert not any("rows" in (report.fallback or "") for report in result.tensors)
    with GGUF.open(base) as before, GGUF.open(tmp_path / "q.gguf") as after:
        named = gguf.LlamaFileType[FILE_TYPES.get(type, f"MOSTLY_{type.upper()}")]
        assert after.get("general.file_type", int) == named
        assert after.get("general.quantization_version", int) == 2
        for report in result.tensors:
            want, got = decode_tensor(before, report.name), decode_tensor(after, report.name)
            rmse = float(np.sqrt(np.square(got.astype(np.float64) - want).mean()))
            assert rmse == pytest.approx(report.rmse or 0.0, rel=1e-4)
            assert (report.relative_rmse or 0.0) <= LOSES[type]
            assert report.to_bytes == after.tensors[report.name].nbytes


def test_norms_stay_and_the_head_gets_q8_0_as_in_stock_llama_cpp(tmp_path: Path) -> None:
    tied = write_model(tmp_path / "tied.gguf", SHAPE, "F32")
    types = types_of(quantized(tmp_path, tied, "q4_0"))
    assert (types["token_embd.weight"], types["blk.1.ffn_down.weight"]) == ("Q8_0", "Q4_0")
    assert (types["blk.0.attn_norm.weight"], types["output_norm.weight"]) == ("F32", "F32")
    untied = write_model(tmp_path / "untied.gguf", Shape(tied=False), "F32")
    types = types_of(quantized(tmp_path, untied, "q4_0"))
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_0", "Q8_0")
    quantize(QuantizeSettings(str(untied), str(tmp_path / "o.gguf"), "q4_0", output_type="f16"))
    assert types_of(tmp_path / "o.gguf")["output.weight"] == "F16"


def test_rows_that_are_no_whole_blocks_fall_back_and_it_is_told(tmp_path: Path) -> None:
    shape = Shape(hidden=40, heads=2, kv_heads=1, head_dim=32)
    base = write_model(tmp_path / "base.gguf", shape, "F32")
    result = quantize(QuantizeSettings(str(base), str(tmp_path / "q.gguf"), "q4_0"))
    rows = {report.name: report for report in result.tensors}
    assert (rows["blk.0.attn_q.weight"].to_type, rows["blk.0.ffn_down.weight"].to_type) == ("F16", "Q4_0")
    assert "rows of 40" in (rows["blk.0.attn_q.weight"].fallback or "")
    assert rows["blk.0.ffn_down.weight"].fallback is None


def test_a_tensor_of_the_type_asked_for_is_copied_bit_for_bit(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", SHAPE, "Q8_0")
    path = quantized(tmp_path, base, "q8_0")
    with GGUF.open(base) as before, GGUF.open(path) as after:
        assert all(before.data(name) == after.data(name) for name in before.tensors)


@pytest.mark.parametrize(("value", "type"), [(np.nan, "q8_0"), (np.inf, "bf16"), (1e6, "f16"), (1e9, "q4_1")])
def test_values_that_a_type_cannot_hold_are_not_written(tmp_path: Path, value: float, type: str) -> None:
    weights = ones(4, 32)
    weights[2, 5] = value
    path = write_raw(tmp_path / "m.gguf", {"blk.0.attn_q.weight": weights}, **{"general.type": "model"})
    with pytest.raises(DataError, match=r"blk\.0\.attn_q\.weight holds values that"):
        quantized(tmp_path, path, type)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_tensor_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    rows = 65536
    path = tmp_path / "m.gguf"
    with path.open("wb") as out:
        row = np.arange(1024, dtype="<u2").tobytes() * 64
        write_gguf(
            out, {}, [TensorSpec("a.weight", BY_NAME["F16"].type, (rows, 1024))], (row for _ in range(rows // 64))
        )
    code = """if 1:
    import sys
    from fabric.weights.quantize import quantize
    from fabric.weights.settings import *
    def anonymous():
        return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) << 10
    before, most = anonymous(), [0]
    def watch(done, total): most[0] = max(most[0], anonymous())
    quantize(QuantizeSettings(sys.argv[1], sys.argv[2], "q8_0", threads=2), watch)
    print(most[0] - before)
    """
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "q.gguf")]
    grown = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert grown < rows * 1024 * 4 // 2  # half of what the tensor takes in F32


def test_files_that_are_no_whole_model_are_refused(tmp_path: Path, tuned: Path) -> None:
    vocabulary = write_raw(tmp_path / "vocabulary.gguf", {}, **{"general.type": "model"})
    unknown = tmp_path / "unknown.gguf"
    with unknown.open("wb") as out:
        write_gguf(out, {}, [TensorSpec("a.weight", BY_NAME["Q8_K"].type, (2, 256))], [bytes(584)])
    for path, sentence in (
        (vocabulary, "no weights"),
        (tuned, "an adapter"),
        (unknown, r"a\.weight is Q8_K, a type that holds no weights"),
    ):
        with pytest.raises(DataError, match=sentence):
            quantized(tmp_path, path, "q8_0")


def test_inspect_tells_what_a_file_holds(tmp_path: Path, base: Path, tuned: Path) -> None:
    with GGUF.open(merged(tmp_path, base, tuned)) as file:
        told = json.loads(json.dumps(summary(file)))
        assert (told["kind"], told["architecture"], told["file_bytes"]) == ("model", "llama", file.file_bytes)
        assert told["parameters"] == sum(info.n_elements for info in file.tensors.values())
        assert sum(row["tensors"] for row in told["types"].values()) == len(told["tensors"]) == len(file.tensors)
        assert told["metadata"]["tokenizer.ggml.tokens"]["length"] == SHAPE.vocab
        assert [made["command"] for made in told["history"]] == ["train", "merge"]
    odd = io.BytesIO()
    write_gguf(odd, {"text": b"\xff".decode("utf-8", "surrogateescape")}, [], [])
    (tmp_path / "odd.gguf").write_bytes(odd.getvalue())
    with GGUF.open(tmp_path / "odd.gguf") as file:
        assert json.dumps(summary(file), ensure_ascii=False).encode()
        assert summary(file)["matrix_bits_per_weight"] is None


# ---- stock llama.cpp ----

PROMPT = "The lighthouse keeper wrote in the harbour log that the wind had turned and the last boat was late."


@stock
def test_stock_llama_cpp_sees_the_same_in_adapter_and_merged_model(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", SHAPE, "F32")
    tuned = save(tmp_path / "a.gguf", adapter(random_pairs(SHAPE, b_std=0.3), alpha=6.0))
    tokens = list(range(3, 90))
    with llama_cpp.Llama(base) as plain, llama_cpp.Llama(base, tuned) as changed:
        before, with_adapter = plain.logits(tokens), changed.logits(tokens)
    with llama_cpp.Llama(merged(tmp_path, base, tuned, type="f32")) as model:
        after = model.logits(tokens)
    assert relative_error(with_adapter, before) > 0.1
    assert relative_error(after, with_adapter) < 1e-5


@stock
def test_stock_llama_cpp_agrees_on_a_real_model_merged_and_quantized(tmp_path: Path) -> None:
    base = smollm2()
    with GGUF.open(base) as model:
        rng = np.random.default_rng(1)
        made = {}
        for name, info in model.tensors.items():
            if name.endswith(("attn_q.weight", "ffn_down.weight")):
                rows, cols = info.shape
                made[name] = (
                    rng.standard_normal((8, cols), np.float32) * 0.05,
                    rng.standard_normal((rows, 8), np.float32) * 0.06,
                )
    tuned = save(tmp_path / "a.gguf", adapter(made, 16.0))
    exact = merged(tmp_path, base, tuned, type="f32")
    with llama_cpp.Llama(exact) as stock_model:
        tokens = stock_model.tokenize(PROMPT)
        truth = stock_model.logits(tokens)

    def divergence(model: Path, change: Path | None = None) -> float:
        with llama_cpp.Llama(model, change) as stock_model:
            return mean_kl(truth, stock_model.logits(tokens))

    assert divergence(base) > 0.1
    assert divergence(base, tuned) < 0.02  # stock rounds activations to 8 bits before it multiplies with blocks
    whole = merged(tmp_path, base, tuned)
    assert divergence(whole) < 1e-3
    assert divergence(quantized(tmp_path, whole, "q8_0")) < 0.02
    assert divergence(quantized(tmp_path, whole, "q4_0")) < 0.5
