"""PEFT adapters of every kind come out as what PEFT computes from them, or are refused by name; nothing that was
trained is dropped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="conversion is compared with torch, transformers and peft")
transformers = pytest.importorskip("transformers", reason="conversion is compared with torch, transformers and peft")
peft = pytest.importorskip("peft", reason="conversion is compared with torch, transformers and peft")

from tests.cli.shell import Ended, fabric, one_sentence  # noqa: E402
from tests.huggingface.checkpoints import COMMON, checkpoint, edit, load, logits, tokenizer  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402

TOKENS = [1, 17, 5, 302, 44, 17, 9, 380, 250, 61, 77, 3, 4, 21, 22, 23, 24, 199, 210, 305, 33]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of checkpoints; beside each, what it was converted to."""
    root, found = tmp_path_factory.mktemp("bases"), {}
    for name, kind, settings in (("llama", "llama", {}), ("tied", "llama", {"tie_word_embeddings": True})):
        checkpoint(root / name, kind, **settings)
        assert fabric("convert", root / name, "-o", root / f"{name}.gguf").code == 0
        found[name] = root / name
    return found


def train(model: Any, seed: int = 3) -> None:
    """Moves what trains, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def saved(base: Path, folder: Path, config: Any, trained: bool = True, **how: Any) -> np.ndarray:
    """Saves an adapter; logits of what PEFT loads again."""
    torch.manual_seed(7)
    model = peft.get_peft_model(load(base), config)
    if trained:
        train(model)
    model.save_pretrained(folder, **how)
    return logits(peft.PeftModel.from_pretrained(load(base), folder).eval(), TOKENS)


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM", "target_modules": ALL, **settings})


def converted(base: Path, folder: Path, gguf: Path | None = None) -> Ended:
    return fabric("convert", folder, "-m", gguf or base.with_suffix(".gguf"), "-o", folder.parent / "a.gguf")


def result(base: Path, folder: Path) -> np.ndarray:
    ended = converted(base, folder)
    assert ended.code == 0, ended.err
    return ours.logits(base.with_suffix(".gguf"), TOKENS, adapter=folder.parent / "a.gguf")


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"v_proj": 3},
        },
        {"init_lora_weights": "olora", "use_rslora": True, "alpha_pattern": {"layers.1.mlp.up_proj": 30}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "v_proj"]},
        {"alpha_pattern": {r".*\.(q|k)_proj": 3, "down_proj": 50}, "rank_pattern": {r"layers\.0\..*": 2}},
    ],
)
def test_an_adapter_computes_what_peft_computes(
    settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    theirs = saved(bases["llama"], tmp_path / "peft", lora(**settings))
    assert relative_error(result(bases["llama"], tmp_path / "peft"), theirs) < 2e-5


def test_a_changed_base_is_computed_by_llama_cpp_too(bases: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="files are compared with stock llama.cpp")
    from tests.support.llama_cpp import Llama

    theirs = saved(bases["llama"], tmp_path / "peft", lora(init_lora_weights="pissa"))
    assert converted(bases["llama"], tmp_path / "peft").code == 0
    with Llama(bases["llama"].with_suffix(".gguf"), tmp_path / "a.gguf") as stock:
        assert relative_error(stock.logits(TOKENS), theirs) < 1e-3


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "loftq", "lora_ga", "future", 7])
def test_an_initialisation_that_cannot_be_undone_is_refused(
    init: object, bases: dict[str, Path], tmp_path: Path
) -> None:
    saved(bases["llama"], tmp_path / "peft", lora())
    edit(tmp_path / "peft" / "adapter_config.json", init_lora_weights=init)
    one_sentence(converted(bases["llama"], tmp_path / "peft"), 65, "init_lora_weights", str(init))


def test_a_changed_base_needs_the_weights_it_was_made_from(bases: dict[str, Path], tmp_path: Path) -> None:
    saved(bases["llama"], tmp_path / "peft", lora(init_lora_weights="pissa", target_modules=["q_proj"]))
    assert fabric("quantize", bases["llama"].with_suffix(".gguf"), "-o", tmp_path / "q8.gguf").code == 0
    one_sentence(converted(bases["llama"], tmp_path / "peft", tmp_path / "q8.gguf"), 65, "pissa", "F32")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True, "init_lora_weights": False}, "lora_bias"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused_by_name(
    settings: dict[str, Any], said: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    peft.get_peft_model(load(bases["llama"]), lora(**settings)).save_pretrained(tmp_path / "peft")
    one_sentence(converted(bases["llama"], tmp_path / "peft"), 65, said)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"r": 8}, {"rank_pattern": {"q_proj": 3}}, {"target_parameters": ["experts"]}, {"megatron_config": {"a": 1}},
        {"alora_invocation_tokens": [5]}, {"kasa_config": {}}, {"use_bdlora": {"nblocks": 2}}, {"lora_alpha": 0},
        {"arrow_config": {"top_k": 2}},
    ],
)  # fmt: skip
def test_a_setting_that_changes_what_a_pair_means_is_refused(
    change: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    saved(bases["llama"], tmp_path / "peft", lora(), trained=False)
    edit(tmp_path / "peft" / "adapter_config.json", **change)
    one_sentence(converted(bases["llama"], tmp_path / "peft"), 65, "adapter_config.json")


def test_an_unknown_setting_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    saved(bases["llama"], tmp_path / "peft", lora(), trained=False)
    edit(tmp_path / "peft" / "adapter_config.json", future=3, other=None)
    ended = converted(bases["llama"], tmp_path / "peft")
    assert ended.code == 0 and "1 setting is unknown and not used: future" in ended.err


# ---- whole weights in an adapter ----


@pytest.mark.parametrize("base", ["llama", "tied"])
def test_whole_weights_that_are_the_bases_are_left_out(base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    theirs = saved(bases[base], tmp_path / "peft", lora(), save_embedding_layers=True)
    assert relative_error(result(bases[base], tmp_path / "peft"), theirs) < 2e-5
    saved(bases[base], tmp_path / "kept" / "peft", lora(modules_to_save=["norm"]), trained=False)
    assert converted(bases[base], tmp_path / "kept" / "peft").code == 0


@pytest.mark.parametrize("base", ["llama", "tied"])
def test_trained_embeddings_are_never_dropped(base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = peft.get_peft_model(load(bases[base]), lora(target_modules=["q_proj"]))
    with torch.no_grad():
        model.get_input_embeddings().weight[7] += 0.01
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=True)
    one_sentence(converted(bases[base], tmp_path / "peft"), 65, "trained", "merge_and_unload")


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "norm", "input_layernorm"])
def test_trained_modules_are_never_dropped(module: str, bases: dict[str, Path], tmp_path: Path) -> None:
    saved(bases["llama"], tmp_path / "peft", lora(target_modules=["q_proj"], modules_to_save=[module]))
    one_sentence(converted(bases["llama"], tmp_path / "peft"), 65, module, "trained")


def test_resized_embeddings_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    model = load(bases["llama"])
    model.resize_token_embeddings(410)
    model = peft.get_peft_model(model, lora(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=True)
    one_sentence(converted(bases["llama"], tmp_path / "peft"), 65, "[410, 64]", "[400, 64]")


def test_beside_a_quantized_base_whole_weights_cannot_be_compared(bases: dict[str, Path], tmp_path: Path) -> None:
    saved(bases["llama"], tmp_path / "peft", lora(target_modules=["q_proj"]), save_embedding_layers=True)
    assert fabric("quantize", bases["llama"].with_suffix(".gguf"), "-o", tmp_path / "q8.gguf").code == 0
    one_sentence(converted(bases["llama"], tmp_path / "peft", tmp_path / "q8.gguf"), 65, "Q8_0", "give the base in F32")


# ---- multimodal Gemma-3 ----


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma-3 with an image tower, and what it was converted to."""
    folder = tmp_path_factory.mktemp("gemma") / "hf"
    text = {**COMMON, "num_hidden_layers": 7, "sliding_window": 16, "query_pre_attn_scalar": 16, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                       image_token_index=399, boi_token_index=398, eoi_token_index=397)  # fmt: skip
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer(folder)
    ended = fabric("convert", folder, "-o", folder.with_suffix(".gguf"))
    assert ended.code == 0 and "other parts than the text model are left out" in ended.err, ended.err
    return folder


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_the_names_of_every_release_are_understood(prefix: str, gemma: Path, tmp_path: Path) -> None:
    """Today's prefix, that of older releases, and that of a model of text alone; patterns are matched as they were."""
    from safetensors.numpy import load_file, save_file

    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(gemma, dtype=torch.float32).eval()
    targets = r".*language_model.*\.(q_proj|down_proj)"
    config = lora(target_modules=targets, alpha_pattern={r"^model\.language_model\.layers\.0\..*": 30})
    model = peft.get_peft_model(model, config)
    train(model)
    model.save_pretrained(tmp_path / "peft")
    path, today = tmp_path / "peft" / "adapter_model.safetensors", "base_model.model.model.language_model."
    tensors = {name.replace(today, f"base_model.model.{prefix}"): array for name, array in load_file(path).items()}
    save_file(tensors, path)
    pattern = f"^{prefix}layers.0.".replace(".", r"\.") + ".*"
    edit(tmp_path / "peft" / "adapter_config.json", alpha_pattern={pattern: 30})
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    assert relative_error(result(gemma, tmp_path / "peft"), theirs) < 2e-5


def test_pairs_of_the_image_tower_are_named(gemma: Path, tmp_path: Path) -> None:
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(gemma, dtype=torch.float32)
    model = peft.get_peft_model(model, lora(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "peft")
    ended = converted(gemma, tmp_path / "peft")
    assert ended.code == 0 and "2 tensors of other parts than the text model are left out" in ended.err
    told = fabric("convert", tmp_path / "peft", "-m", gemma.with_suffix(".gguf"), "-o", tmp_path / "s.gguf", "--strict")
    one_sentence(told, 65, "vision_tower")


def test_an_adapter_that_comes_back_is_read_by_peft(gemma: Path, tmp_path: Path) -> None:
    """Under the names of a model of text alone, which GGUF is."""
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(gemma, dtype=torch.float32)
    peft.get_peft_model(model, lora(target_modules=r".*language_model.*\.q_proj")).save_pretrained(tmp_path / "peft")
    assert converted(gemma, tmp_path / "peft").code == 0
    line = ("convert", tmp_path / "a.gguf", "-m", gemma.with_suffix(".gguf"), "-o", tmp_path / "back")
    assert fabric(*line).code == 0
    told = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert told["target_modules"] == ["q_proj"]
    shutil.rmtree(tmp_path / "back")
