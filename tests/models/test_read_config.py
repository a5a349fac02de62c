from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from fabric.errors import DataError
from fabric.models import architecture_of, architectures
from fabric.weights.gguf import GGUF
from tests.support.random_models import write_model
from tests.support.shapes import SMALL

WRONG = [
    ("llama", "rope.freq_base", 0.0),
    ("llama", "rope.freq_base", float("inf")),
    ("llama", "rope.freq_base", "much"),
    ("llama", "rope.scaling.type", "yarn"),
    ("llama", "rope.scaling.type", "longrope"),
    ("qwen2", "attention.head_count", 0),
    ("qwen2", "attention.head_count_kv", 3),
    ("qwen3", "attention.key_length", -32),
    ("qwen3", "attention.key_length", 1 << 20),
    ("qwen3", "rope.dimension_count", 33),
    ("llama", "block_count", 1 << 40),
    ("gemma3", "attention.sliding_window", None),
    ("gemma3", "attention.sliding_window", 0),
    ("gemma3", "attention.sliding_window_pattern", [True, False]),
    ("gemma3", "rope.freq_base_swa", -1.0),
    ("gemma3", "rope.scaling.factor", 0.0),
    ("gemma3", "rope.scaling.factor", None),
    ("gemma3", "final_logit_softcapping", 30.0),
    ("qwen3moe", "expert_count", 0),
    ("qwen3moe", "expert_count", 7),
    ("qwen3moe", "expert_used_count", 9),
    ("qwen3moe", "expert_used_count", None),
    ("qwen3moe", "expert_feed_forward_length", 1 << 40),
    ("qwen3moe", "expert_gating_func", 2),
    ("qwen3moe", "expert_weights_norm", False),
    ("qwen3moe", "expert_weights_scale", 2.5),
    ("qwen3moe", "expert_shared_count", 1),
    ("qwen3", "expert_count", 8),
]


@pytest.mark.parametrize("name", architectures())
def test_small_models_can_be_read(name: str, tmp_path: Path) -> None:
    with GGUF.open(write_model(tmp_path / "m.gguf", SMALL[name])) as gguf:
        config = architecture_of(gguf).read_config(gguf)
        assert (config.n_layers, config.head_dim) == (SMALL[name].layers, SMALL[name].head_dim)


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_a_key_that_makes_no_sense_is_named(name: str, key: str, value: object, tmp_path: Path) -> None:
    with GGUF.open(write_model(tmp_path / "m.gguf", SMALL[name])) as gguf:
        metadata = {**gguf.metadata, f"{name}.{key}": value}
        if value is None:
            del metadata[f"{name}.{key}"]
        gguf.metadata = metadata
        with pytest.raises(DataError, match=r"m\.gguf: ") as error:
            architecture_of(gguf).read_config(gguf)
        assert len(str(error.value).splitlines()) == 1


def test_tokens_that_are_no_list_are_refused(tmp_path: Path) -> None:
    with GGUF.open(write_model(tmp_path / "m.gguf", SMALL["llama"])) as gguf:
        gguf.metadata = {**gguf.metadata, "tokenizer.ggml.tokens": 7}
        with pytest.raises(DataError, match=r"tokenizer\.ggml\.tokens"):
            architecture_of(gguf).read_config(gguf)


@pytest.mark.parametrize("name", architectures())
def test_every_tensor_of_another_shape_is_named(name: str, tmp_path: Path) -> None:
    shape = replace(SMALL[name], tied=False)
    with GGUF.open(write_model(tmp_path / "m.gguf", shape)) as gguf:
        config, tensors = architecture_of(gguf), dict(gguf.tensors)
        config.read_config(gguf)
        for tensor, info in tensors.items():
            for axis in range(len(info.shape)):
                for by in (-1, 1, 32):
                    other = tuple(n + by * (i == axis) for i, n in enumerate(info.shape))
                    gguf.tensors = {**tensors, tensor: replace(info, shape=other)}
                    with pytest.raises(DataError, match=r"m\.gguf") as error:
                        config.read_config(gguf)
                    if not (tensor == "token_embd.weight" and axis == 0):  # then it is the output that differs
                        assert tensor in str(error.value), error.value
        for key in ("attention.head_count", "attention.key_length", "embedding_length", "feed_forward_length"):
            gguf.tensors, gguf.metadata = tensors, {**gguf.metadata, f"{name}.{key}": 33_554_464}
            with pytest.raises(DataError, match=r"m\.gguf"):
                config.read_config(gguf)
