"""Every setting of config.json that changes what transformers computes is kept, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="conversion is compared with torch, transformers and peft")
transformers = pytest.importorskip("transformers", reason="conversion is compared with torch, transformers and peft")

from fabric.huggingface.inert import INERT  # noqa: E402
from fabric.huggingface.names import FAMILIES  # noqa: E402
from fabric.weights.gguf import GGUF  # noqa: E402
from tests.cli.shell import Ended, fabric, one_sentence  # noqa: E402
from tests.huggingface.checkpoints import LONGROPE, MINISTRAL, checkpoint, edit, load, logits  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402

TOKENS = [1, 17, 5, 302, 44, 17, 9, 380, 250, 61, 77, 3, 4, 21, 22, 23, 24, 199, 210, 305, 33]
CLASSES = {
    "llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config",
    "gemma3_text": "Gemma3TextConfig",
    "smollm3": "SmolLM3Config", "granite": "GraniteConfig", "olmo2": "Olmo2Config", "exaone4": "Exaone4Config",
    "gemma2": "Gemma2Config", "bitnet": "BitNetConfig", "phi3": "Phi3Config", "qwen3_5_text": "Qwen3_5TextConfig",
    "gemma4_text": "Gemma4TextConfig", "lfm2": "Lfm2Config", "ministral3": "Ministral3Config",
    "qwen3_moe": "Qwen3MoeConfig",
}  # fmt: skip


def convert(folder: Path) -> Ended:
    return fabric("convert", folder, "-o", folder.parent / "m.gguf")


@pytest.mark.parametrize("name", CLASSES)
def test_what_config_json_leaves_out_is_what_transformers_takes(name: str) -> None:
    family = next(family for family in FAMILIES if name in family.model_types)
    fields = {field.name: field for field in dataclasses.fields(getattr(transformers, CLASSES[name]))}
    common = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    for key, value in family.defaults.items():
        if key in fields:
            assert fields[key].default == value, key
    assert not set(fields) - common - set(family.defaults) - INERT - {"rope_parameters"}


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
KEPT: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"mlp_bias": True, "attention_bias": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}}),
    ("llama", {"rope_parameters": YARN}),
    ("qwen3", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("qwen2", {"rope_parameters": YARN | {"attention_factor": 0.8}}),
    ("mistral3", {"rope_parameters": MINISTRAL | {"mscale": 0.5, "mscale_all_dim": 0.7}}),
    ("mistral3", {"rope_parameters": MINISTRAL | {"attention_factor": 1.2}}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}}),
    ("phi3", {"rope_parameters": LONGROPE | {"attention_factor": 1.3, "factor": 3.0}}),
    ("phi3", {"original_max_position_embeddings": 20, "tie_word_embeddings": True, "rope_parameters": LONGROPE}),
    ("lfm2", {"block_auto_adjust_ff_dim": False, "intermediate_size": 96, "tie_word_embeddings": False}),
    ("gemma4", {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "final_logit_softcapping": None}),
    ("gemma3", {"tie_word_embeddings": False}),
    ("gemma3", {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]}),
    ("gemma3", {"layer_types": ["sliding_attention"] * 7}),
    (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
    ),
]


@pytest.mark.parametrize(("name", "settings"), KEPT)
def test_what_gguf_can_express_is_computed_as_transformers_does(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / "hf", name, **settings)
    ended = convert(tmp_path / "hf")
    assert ended.code == 0, ended.err
    expected = logits(model, TOKENS)
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), expected) < 1e-5
    pytest.importorskip("xllamacpp", reason="files are compared with stock llama.cpp")
    from tests.support.llama_cpp import Llama

    with Llama(tmp_path / "m.gguf") as stock:
        assert relative_error(stock.logits(TOKENS), expected) < 1e-3


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "relu"}, "hidden_act"),
    ("llama", {"is_causal": False}, "is_causal"),
    ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
    ("gemma3", {"hidden_activation": "silu"}, "hidden_activation"),
    ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    ("qwen3moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    ("qwen3moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("qwen3moe", {"num_local_experts": 5}, "mlp.experts.4.gate_proj"),
    ("gemma3", {"attention_bias": True}, "attention_bias"),
    ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("gemma3", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 5}, "layer_types"),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, "yarn"),
    ("qwen3", {"rope_parameters": YARN | {"truncate": False}}, "truncate"),
    ("llama", {"rope_parameters": YARN | {"beta_fast": 16.0}}, "beta_fast"),
    ("bitnet", {"hidden_act": "silu"}, "hidden_act"),
    ("lfm2", {"conv_bias": True}, "conv_bias"),
    ("gemma4", {"enable_moe_block": True}, "enable_moe_block"),
    ("gemma4", {"attention_k_eq_v": True}, "attention_k_eq_v"),
    ("gemma4", {"per_layer_config": {"0": {"head_dim": 32}}}, "per_layer_config"),
    ("gemma4", {"vocab_size_per_layer_input": 300}, "vocab_size_per_layer_input"),
    ("lfm2", {"layer_types": ["conv", "sliding_attention", "conv"]}, "layer_types"),
    ("bitnet", {"quantization_config": {"quant_method": "bitnet"}}, "quantization_config"),
    ("mistral3", {"sliding_window": 16}, "sliding_window"),
    ("mistral3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_type"),
    ("phi3", {"rope_parameters": LONGROPE | {"short_factor": [1.0] * 5}}, "short_factor"),
    ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.1}}, "partial_rotary_factor"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, "no_rope_layers"),
    ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("exaone4", {"sliding_window": 16}, "sliding_window"),
    ("olmo2", {"attention_bias": True}, "attention_bias"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, "dynamic"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama", {"rope_parameters": 3}, "rope_parameters"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ("qwen2", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "llama3"),
    ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}}, "sliding_attention"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"model_type": "qwen2"}, "model_type"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama", {"num_hidden_layers": 1}, "num_hidden_layers"),
    ("llama", {"num_hidden_layers": 3}, "num_hidden_layers"),
    ("llama", {"vocab_size": 401}, "config.json"),
    ("llama", {"intermediate_size": 128}, "config.json"),
    ("llama", {"attention_bias": True}, "self_attn.q_proj.bias"),
    ("llama_with_biases", {"attention_bias": False}, "would have no effect"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name in {row[0] for row in REFUSED}:
        checkpoint(folder / name, name)
    return folder


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED, ids=[f"{row[0]} {row[2]}" for row in REFUSED])
def test_what_gguf_cannot_express_is_refused_by_name(
    name: str, settings: dict[str, Any], said: str, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / name, tmp_path / "hf")
    edit(tmp_path / "hf" / "config.json", **settings)
    one_sentence(convert(tmp_path / "hf"), 65, said)


def test_a_window_that_gguf_cannot_express_cuts_the_context_and_is_named(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "qwen2", tmp_path / "hf")
    edit(
        tmp_path / "hf" / "config.json",
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
        layer_types=None,
    )
    ended = convert(tmp_path / "hf")
    assert ended.code == 0 and "sliding_window is 16" in ended.err
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        assert gguf.metadata["qwen2.context_length"] == 16
    one_sentence(fabric("convert", tmp_path / "hf", "--strict", "-o", tmp_path / "s.gguf"), 65, "sliding_window")


def test_unknown_settings_are_named_once_and_refused_where_that_is_asked_for(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "llama", tmp_path / "hf")
    edit(tmp_path / "hf" / "config.json", future_setting=3, other="x", nothing=False)
    ended = convert(tmp_path / "hf")
    assert ended.code == 0
    assert ended.err.count("2 settings are unknown and not used: future_setting, other") == 1
    one_sentence(fabric("convert", tmp_path / "hf", "--strict", "-o", tmp_path / "s.gguf"), 65, "future_setting")


def test_a_head_that_differs_from_the_embedding_it_should_be_is_kept(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "llama", tmp_path / "hf")
    edit(tmp_path / "hf" / "config.json", tie_word_embeddings=True)
    ended = convert(tmp_path / "hf")
    assert ended.code == 0 and "lm_head.weight" in ended.err
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), logits(load(tmp_path / "hf"), TOKENS)) < 1e-5


def test_what_a_multimodal_config_leaves_out_is_the_text_models_own(tmp_path: Path) -> None:
    """config.json of the Gemma-3 of 4 billion names six settings of its text model."""
    from fabric.fields import Fields
    from fabric.huggingface.config import read_settings

    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "model_type": "gemma3_text"}  # fmt: skip
    told = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    settings = read_settings(Fields(told, "config.json"))
    theirs = transformers.Gemma3Config(text_config=text).text_config
    assert (settings.n_head, settings.n_kv_head, settings.head_dim) == (8, 4, 256)
    assert settings.vocab_size == theirs.vocab_size and settings.tied
    assert settings.metadata["gemma3.context_length"] == theirs.max_position_embeddings
    assert settings.metadata["gemma3.rope.freq_base"] == theirs.rope_parameters["full_attention"]["rope_theta"]
    assert settings.metadata["gemma3.rope.scaling.factor"] == 8.0


# ---- weight files ----


@pytest.mark.parametrize("other", ["consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"])
def test_of_several_weight_files_the_one_that_transformers_loads_is_read(
    other: str, saved: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(saved / "llama", tmp_path / "hf")
    wrong = {name: np.zeros_like(array) for name, array in load_file(tmp_path / "hf" / "model.safetensors").items()}
    save_file(wrong, tmp_path / "hf" / other)
    ended = convert(tmp_path / "hf")
    assert ended.code == 0 and other in ended.err
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), logits(load(tmp_path / "hf"), TOKENS)) < 1e-5


def test_the_file_that_config_json_names_comes_first(saved: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(saved / "llama", tmp_path / "hf")
    right = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(right, tmp_path / "hf" / "own.safetensors", {"format": "pt"})
    save_file({name: np.zeros_like(array) for name, array in right.items()}, tmp_path / "hf" / "model.safetensors")
    edit(tmp_path / "hf" / "config.json", transformers_weights="own.safetensors")
    assert convert(tmp_path / "hf").code == 0
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), logits(load(saved / "llama"), TOKENS)) < 1e-5


def test_a_result_never_takes_the_place_of_what_it_is_made_of(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "llama", tmp_path / "hf")
    before = (tmp_path / "hf" / "config.json").read_bytes()
    ended = fabric("convert", tmp_path / "hf", "-o", tmp_path / "hf" / "config.json")
    one_sentence(ended, 2, "config.json", "input")
    assert (tmp_path / "hf" / "config.json").read_bytes() == before
    assert json.loads(before)["model_type"] == "llama"


def test_a_ministral_beside_its_images_is_the_text_model_alone(tmp_path: Path) -> None:
    """As Ministral 3 is published: config.json and tensors of a multimodal model."""
    model = checkpoint(tmp_path / "hf", "mistral3")
    want, config = logits(model, TOKENS), tmp_path / "hf" / "config.json"
    text = json.loads(config.read_text())
    whole = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text,
             "vision_config": {"model_type": "pixtral"}, "image_token_index": 10, "spatial_merge_size": 2}  # fmt: skip
    config.write_text(json.dumps(whole))
    weights = tmp_path / "hf" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = {name.replace("model.", "language_model.model."): value for name, value in load_file(weights).items()}
    tensors = {name.replace("lm_head", "language_model.lm_head"): value for name, value in tensors.items()}
    save_file({**tensors, "vision_tower.patch_conv.weight": torch.zeros(4, 4)}, weights, {"format": "pt"})
    ended = convert(tmp_path / "hf")
    assert ended.code == 0 and "vision_tower" in ended.err, ended.err
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), want) < 1e-5
    config.write_text(json.dumps({**whole, "text_config": {**text, "model_type": "mistral"}}))
    one_sentence(convert(tmp_path / "hf"), 65, "text_config.model_type")
