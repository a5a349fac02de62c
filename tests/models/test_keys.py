"""What a file asks for is computed as stock llama.cpp computes it, or refused by name: keys, scales of tensors, tensors
that nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from tests.cli.shell import fabric, one_sentence, shell
from tests.parity import ours
from tests.support.compare import relative_error
from tests.support.edited import edited
from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import SMALL

TOKENS = [1, 17, 5, 302, 44, 17, 9, 310, 250, 61, 77, 3, 4, 21, 22, 23, 24, 199, 210, 305, 33]
HALF = np.array([0.5], np.float32)
FACTORS = np.linspace(1, 2, 8, dtype=np.float32)

Keys = dict[str, Any]
Tensors = dict[str, Any]
YARN: Keys = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128,
}  # fmt: skip
HONOURED: list[tuple[str, str, Keys, Tensors]] = [
    ("a factor alone", "llama", {"rope.scaling.factor": 4.0}, {}),
    ("the old name", "llama", {"rope.scale_linear": 4.0}, {}),
    ("old and new name", "qwen2", {"rope.scale_linear": 4.0, "rope.scaling.factor": 2.0}, {}),
    ("a type with the old name", "qwen3", {"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, {}),
    ("none, whatever the factor", "llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
    ("the magnitude of RoPE", "llama", {"rope.scaling.attn_factor": 0.7}, {}),
    ("the magnitude of both kinds of layer", "gemma3", {"rope.scaling.attn_factor": 0.7}, {}),
    ("factors and a factor", "llama", {"rope.scaling.factor": 4.0}, {"rope_freqs.weight": FACTORS}),
    ("YaRN", "llama", YARN, {}),
    ("YaRN beside norms of heads", "qwen3", YARN | {"rope.scaling.yarn_beta_fast": 32.0}, {}),
    ("YaRN with another magnitude", "qwen2", YARN | {"rope.scaling.attn_factor": 0.7}, {}),
    ("YaRN of the whole context", "llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, {}),
    ("no factors", "granite", {"embedding_scale": 0.0, "residual_scale": 0.0, "attention.scale": 0.0}, {}),
    ("equal layers", "llama", {"attention.head_count": [4, 4], "feed_forward_length": [96, 96]}, {}),
    ("a pattern as a list", "gemma3", {"attention.sliding_window_pattern": [True, False] * 3 + [True]}, {}),
    ("scales of matrices", "llama", {}, {f"blk.0.{m}.scale": HALF for m in ("attn_q", "attn_output", "ffn_down")}),
    ("scales where attention has norms", "qwen3", {}, {"blk.1.attn_v.scale": HALF, "blk.0.ffn_up.scale": HALF}),
    (
        "scales of every matrix",
        "bitnet",
        {"hidden_activation": None},
        {
            f"blk.0.{m}.scale": HALF
            for m in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        },
    ),
    ("scales of kernels", "llama", {}, {"blk.0.attn_q.input_scale": HALF}),
    ("a head of its own", "gemma3", {}, {"output.weight": np.full((320, 64), 0.1, np.float32)}),
    ("what asks for nothing", "llama", {"expert_count": 0, "logit_scale": 1.0, "attention.causal": True}, {}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write_model(folder / f"{name}.gguf", shape) for name, shape in SMALL.items()}


def changed(
    bases: Mapping[str, Path], folder: Path, name: str, keys: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Path:
    told = {f"{name}.{key}": value for key, value in keys.items()}
    return edited(bases[name], folder / "m.gguf", told, tensors)


@pytest.mark.parametrize(("name", "keys", "tensors"), [row[1:] for row in HONOURED], ids=[row[0] for row in HONOURED])
def test_what_a_file_asks_for_is_computed_as_llama_cpp_does(
    name: str, keys: Keys, tensors: Tensors, bases: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="logits are compared with stock llama.cpp")
    from tests.support.llama_cpp import Llama

    model = changed(bases, tmp_path, name, keys, tensors)
    with Llama(model) as stock:
        assert relative_error(ours.logits(model, TOKENS), stock.logits(TOKENS)) < 1e-3


@pytest.mark.parametrize(("name", "keys"), [("llama", {}), ("bitnet", {"hidden_activation": None})])
def test_a_scale_counts_in_training_and_merging_as_it_does_in_llama_cpp(
    name: str, keys: Keys, bases: dict[str, Path], tmp_path: Path
) -> None:
    from fabric.weights.adapter import Adapter, LoraPair, write_adapter

    pytest.importorskip("xllamacpp", reason="logits are compared with stock llama.cpp")
    from tests.support.llama_cpp import Llama

    scales = {
        f"blk.{i}.{module}.scale": HALF * (i + 1.5)
        for i in range(2)
        for module in ("attn_q", "attn_output", "ffn_up", "ffn_down")
    }
    model = changed(bases, tmp_path, name, keys, scales)
    pairs = {matrix: LoraPair(a, b) for matrix, (a, b) in random_pairs(SMALL[name], b_std=0.1).items()}
    with (tmp_path / "a.gguf").open("wb") as out:
        write_adapter(out, Adapter(name, 8.0, pairs))
    merged = tmp_path / "merged.gguf"
    assert fabric("merge", "-m", model, "-a", tmp_path / "a.gguf", "--type", "keep", "-o", merged).code == 0
    with Llama(model, tmp_path / "a.gguf") as stock:
        expected = stock.logits(TOKENS)
    assert relative_error(ours.logits(merged, TOKENS), expected) < 1e-3
    assert relative_error(ours.logits(model, TOKENS, adapter=tmp_path / "a.gguf"), expected) < 1e-3
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text":"the fox and the dog"}\n' * 4)
    for extra in ((), ("--precision", "bf16"), ("--full",)):
        ended = fabric("train", rows, "-m", model, "-o", tmp_path / "t.gguf", "--steps", "2", "--ctx", "32", *extra)
        assert ended.code == 0, ended.err


REFUSED: list[tuple[str, Keys, Tensors, str]] = [
    ("llama", {"rope.scaling.type": "yarn"}, {}, "llama.rope.scaling.factor"),
    ("llama", YARN | {"rope.scaling.original_context_length": 0}, {}, "original_context_length"),
    ("llama", YARN | {"rope.scaling.yarn_ext_factor": 0.5}, {}, "yarn_ext_factor"),
    ("qwen3", YARN | {"rope.scaling.yarn_beta_fast": 4.0}, {}, "qwen3.rope.scaling.yarn_beta_fast"),
    ("llama", YARN | {"rope.freq_base": 1.0}, {}, "llama.rope.freq_base"),
    ("gemma3", YARN, {}, "gemma3.rope.scaling.type"),
    ("gemma2", {"attn_logit_softcapping": 0.0}, {}, "attn_logit_softcapping"),
    ("granite", {"logit_scale": 0.0}, {}, "granite.logit_scale"),
    ("granite", {"rope.scaling.finetuned": False}, {}, "granite.rope.scaling.finetuned"),
    ("olmo2", {"attention.sliding_window": 16}, {}, "olmo2.attention.sliding_window"),
    ("llama", {"rope.scaling.type": "longrope"}, {}, "longrope"),
    ("llama", {"rope.scaling.yarn_ext_factor": 1.0}, {}, "yarn_ext_factor"),
    ("llama", {"rope.scaling.yarn_attn_factor": 0.5}, {}, "yarn_attn_factor"),
    ("llama", {"rope.scaling.attn_factor": float("nan")}, {}, "attn_factor"),
    ("llama", {"attention.head_count_kv": [2, 4]}, {}, "llama.attention.head_count_kv differs between layers"),
    ("llama", {"attention.head_count": [4, 4, 4]}, {}, "3 entries for 2 layers"),
    ("llama", {"feed_forward_length": [96, 64]}, {}, "feed_forward_length"),
    ("qwen2", {"expert_count": 4, "expert_used_count": 2}, {}, "experts"),
    ("llama", {}, {"blk.0.ffn_gate_inp.weight": np.ones((4, 64), np.float32)}, "blk.0.ffn_gate_inp.weight"),
    ("llama", {"attention.scale": 0.3}, {}, "llama.attention.scale"),
    ("gemma3", {"attention.scale": 0.3}, {}, "gemma3.attention.scale"),
    ("llama", {"residual_scale": 0.22}, {}, "llama.residual_scale"),
    ("qwen3", {"logit_scale": 0.1}, {}, "qwen3.logit_scale"),
    ("qwen2", {"embedding_scale": 12.0}, {}, "qwen2.embedding_scale"),
    ("llama", {"attn_logit_softcapping": 50.0}, {}, "llama.attn_logit_softcapping"),
    ("gemma3", {"final_logit_softcapping": 30.0}, {}, "gemma3.final_logit_softcapping"),
    ("llama", {"attention.sliding_window": 16}, {}, "llama.attention.sliding_window"),
    ("gemma3", {"attention.sliding_window_pattern": [True] * 4 + [False] * 3}, {}, "sliding_window_pattern"),
    ("gemma3", {"attention.key_length_swa": 64}, {}, "key_length_swa"),
    ("llama", {"attention.causal": False}, {}, "llama.attention.causal"),
    ("llama", {"attention.clamp_kqv": 8.0}, {}, "clamp_kqv"),
    ("llama", {"use_parallel_residual": True}, {}, "use_parallel_residual"),
    ("qwen2", {"rope.dimension_sections": [16, 24, 24, 0]}, {}, "dimension_sections"),
    ("llama", {"hidden_activation": "relu"}, {}, "hidden_activation"),
    ("llama", {"ssm.conv_kernel": 4}, {}, "ssm.conv_kernel"),
    ("llama", {}, {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}, "blk.0.attn_q_norm.weight"),
    ("llama", {}, {"blk.2.attn_norm.weight": np.ones(64, np.float32)}, "blk.2.attn_norm.weight"),
    ("llama", {}, {"output_norm.bias": np.ones(64, np.float32)}, "output_norm.bias"),
    ("qwen2", {}, {"rope_freqs.weight": FACTORS}, "rope_freqs.weight"),
    ("qwen2", {}, {"blk.0.ffn_up.scale": HALF}, "blk.0.ffn_up.scale"),
    ("llama", {}, {"output.scale": HALF}, "output.scale"),
    ("llama", {}, {"blk.0.attn_q.scale": np.zeros(1, np.float32)}, "blk.0.attn_q.scale"),
    ("llama", {}, {"blk.0.attn_q.scale": np.ones(64, np.float32)}, "blk.0.attn_q.scale"),
    ("llama", {}, {"rope_freqs.weight": -FACTORS}, "rope_freqs.weight"),
]


@pytest.mark.parametrize(("name", "keys", "tensors", "said"), REFUSED, ids=[row[3] for row in REFUSED])
def test_what_is_not_computed_is_refused_by_name(
    name: str, keys: Keys, tensors: Tensors, said: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    from fabric.errors import DataError

    with pytest.raises(DataError) as error:
        ours.logits(changed(bases, tmp_path, name, keys, tensors), TOKENS)
    assert said in str(error.value) and "m.gguf" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["train", "eval", "generate", "bench", "quantize"])
def test_every_command_that_computes_refuses_what_nothing_reads(
    command: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    model = changed(bases, tmp_path, "llama", {}, tensors)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text":"the fox","prompt":"a"}\n' if command == "generate" else '{"text":"the fox"}\n')
    line: dict[str, tuple[str | Path, ...]] = {
        "train": (rows, "-m", model, "-o", tmp_path / "a.gguf"),
        "eval": (rows, "-m", model),
        "generate": ("-m", model, "--prompt", "the"),
        "bench": ("-m", model, "--steps", "1"),
        "quantize": (model, "--calibrate", rows, "-o", tmp_path / "q.gguf"),
    }
    one_sentence(fabric(command, *line[command]), 65, "blk.0.attn_q_norm.weight")


def test_an_unknown_key_is_named_once_and_refused_where_that_is_asked_for(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = changed(bases, tmp_path, "llama", {"future_key": 3, "other_key": "x", "vocab_size": 320}, {})
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text":"the fox and the dog"}\n')
    told = fabric("eval", rows, "-m", model)
    assert told.code == 0, told.err
    assert told.err.count("2 metadata keys are unknown and not used: llama.future_key, llama.other_key") == 1
    one_sentence(fabric("eval", rows, "-m", model, "--strict"), 65, "llama.future_key", "--strict")


def test_an_id_that_no_token_has_is_named_and_everything_works_without_it(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    model = edited(bases["llama"], tmp_path / "m.gguf", {"tokenizer.ggml.padding_token_id": SMALL["llama"].vocab})
    (tmp_path / "rows.jsonl").write_text('{"prompt":"the fox","completion":" and the dog"}\n' * 4)
    script = """
        fabric train rows.jsonl -m m.gguf -o a.gguf --steps 1 --ctx 32 && fabric eval rows.jsonl -m m.gguf -a a.gguf
        fabric generate -m m.gguf --prompt the --max-tokens 2
    """
    ended = shell(f"set -e\n{script}", tmp_path)
    assert ended.code == 0, ended.err
    assert ended.err.count("padding_token_id 320") == 3
    refused = fabric("eval", tmp_path / "rows.jsonl", "-m", model, "--strict")
    one_sentence(refused, 65, "padding_token_id 320")
