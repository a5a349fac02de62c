"""The small files beside a vocabulary are read as transformers reads them: special tokens, ends of an answer,
templates; and Mistral's own formats.
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

from fabric.text.tokenizer import Tokenizer  # noqa: E402
from fabric.weights.gguf import GGUF  # noqa: E402
from tests.cli.shell import fabric, one_sentence  # noqa: E402
from tests.huggingface.checkpoints import SPECIALS, TEXTS, checkpoint, edit, load, logits, spm_model, tokenizer  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.support import foreign  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402

TOKENS = [1, 17, 5, 302, 44, 17, 9, 380, 250, 61, 77, 3, 4, 21, 22, 23, 24, 199, 210, 305, 33]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "hf"
    checkpoint(folder, "mistral")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "hf")
    return tmp_path / "hf"


def converted(folder: Path) -> dict[str, Any]:
    """The metadata of what a folder becomes."""
    out = folder.parent / "m.gguf"
    ended = fabric("convert", folder, "-o", out)
    assert ended.code == 0, ended.err
    with GGUF.open(out) as gguf:
        return {**gguf.metadata, "said": ended.err}


def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


# ---- chat templates ----


def test_templates_come_from_where_transformers_takes_them(folder: Path) -> None:
    """The file before tokenizer_config.json, both before what processors had."""
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "legacy"}))
    assert converted(folder)["tokenizer.chat_template"] == "legacy"
    edit(folder / "tokenizer_config.json", chat_template="config")
    assert converted(folder)["tokenizer.chat_template"] == "config" == theirs(folder).chat_template
    (folder / "chat_template.jinja").write_text("file")
    assert converted(folder)["tokenizer.chat_template"] == "file" == theirs(folder).chat_template


def test_templates_with_names_are_kept_under_them(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    rows = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    edit(folder / "tokenizer_config.json", chat_template=rows)
    metadata = converted(folder)
    assert theirs(folder).chat_template == {"default": "d", "tool_use": "t"}
    assert metadata["tokenizer.chat_template"] == "d"
    assert metadata["tokenizer.chat_template.tool_use"] == "t" and metadata["tokenizer.chat_templates"] == ["tool_use"]
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    (folder / "chat_template.jinja").write_text("f")
    metadata = converted(folder)
    assert theirs(folder).chat_template == {"default": "f", "rag": "r"}
    assert (metadata["tokenizer.chat_template"], metadata["tokenizer.chat_template.rag"]) == ("f", "r")
    assert "tokenizer.chat_template.tool_use" not in metadata
    (folder / "chat_template.jinja").unlink()
    metadata = converted(folder)
    assert "tokenizer.chat_template" not in metadata and "none is the default" in metadata["said"]
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "../x", "template": "t"}])
    shutil.rmtree(folder / "additional_chat_templates")
    one_sentence(fabric("convert", folder, "-o", folder.parent / "x.gguf"), 65, "../x")


# ---- special tokens ----


def test_the_map_of_special_tokens_is_read_where_no_decoder_of_added_tokens_is(folder: Path) -> None:
    special = {
        "bos_token": {"content": "<|im_start|>", "lstrip": False},
        "eos_token": "<|im_end|>",
        "pad_token": "<unk>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    them, metadata = theirs(folder), converted(folder)
    assert (them.bos_token_id, them.eos_token_id, them.pad_token_id) == (3, 4, 0)
    found = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert found == [3, 4, 0]
    edit(folder / "tokenizer_config.json", added_tokens_decoder={"1": {"content": "<s>", "special": True}})
    them, metadata = theirs(folder), converted(folder)
    assert them.bos_token_id == metadata["tokenizer.ggml.bos_token_id"] == 1
    assert them.eos_token_id == metadata["tokenizer.ggml.eos_token_id"] == 2


def test_tokens_that_only_the_configuration_has_get_the_ids_of_transformers(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token="<pad>", extra_special_tokens=["<tool>"])
    them, metadata = theirs(folder), converted(folder)
    size = len(them)
    assert them.pad_token_id == metadata["tokenizer.ggml.padding_token_id"] == size - 2
    assert metadata["tokenizer.ggml.tokens"][size - 2 : size] == ["<pad>", "<tool>"]
    mine = Tokenizer.from_gguf(metadata)
    for text in (*TEXTS, "a<tool>b<pad>"):
        assert mine.encode(text, special=True) == them(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ([2, 4], None, [2, 4]),
        (2, [4, 2], [2, 4]),
        (2, [7, 8, 4], [2, 7, 8]),  # <|im_end|>, 4, is known by its name
        (9, None, [2, 9]),
        (2, 2, [2]),
    ],
)
def test_all_ends_of_an_answer_are_kept(config: Any, generation: Any, ends: list[int], folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=config)
    if generation is None:
        (folder / "generation_config.json").unlink()
    else:
        edit(folder / "generation_config.json", eos_token_id=generation)
    told = transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(folder))
    if generation is not None:
        told = transformers.GenerationConfig.from_pretrained(folder)
    stops = told.eos_token_id if isinstance(told.eos_token_id, list) else [told.eos_token_id]
    metadata = converted(folder)
    found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    assert found == ends + [None] * (3 - len(ends))
    assert set(stops) <= Tokenizer.from_gguf(metadata).end_ids


def test_more_ends_than_gguf_has_keys_are_named(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 8, 9, 10, 4])
    assert "left out" in converted(folder)["said"]


def test_how_a_model_wants_to_be_sampled_is_kept(folder: Path) -> None:
    edit(folder / "generation_config.json", do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    metadata = converted(folder)
    assert metadata["general.sampling.top_k"] == 20
    assert metadata["general.sampling.temp"] == pytest.approx(0.6) and metadata[
        "general.sampling.top_p"
    ] == pytest.approx(0.95)


@pytest.mark.parametrize("edges", [([], []), (["<s>"], []), (["<s>"], ["</s>"])])
def test_what_texts_begin_and_end_with_is_what_the_post_processor_says(
    edges: tuple[list[str], list[str]], folder: Path
) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": text, "type_id": 0}} for text in edges[0]]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": text, "type_id": 0}} for text in edges[1]]
    ids = {"<s>": 1, "</s>": 2}
    special = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in ids.items()}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    post = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    told["post_processor"] = post
    (folder / "tokenizer.json").write_text(json.dumps(told))
    edit(folder / "tokenizer_config.json", add_bos_token=not edges[0])  # which transformers does not read beside it
    metadata = converted(folder)
    assert metadata["tokenizer.ggml.add_bos_token"] is bool(edges[0])
    assert metadata.get("tokenizer.ggml.add_eos_token", False) is bool(edges[1])
    plain = theirs(folder)("boats", add_special_tokens=False)["input_ids"]
    assert theirs(folder)("boats")["input_ids"] == [*(ids[t] for t in edges[0]), *plain, *(ids[t] for t in edges[1])]


# ---- parts of tokenizer.json ----


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "add_prefix_space"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}}, "pre_tokenizer"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}}, "BertProcessing"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ],
)
def test_what_gguf_cannot_express_of_a_tokenizer_is_refused_by_name(
    change: dict[str, Any], said: str, folder: Path
) -> None:
    edit(folder / "tokenizer.json", **change)
    one_sentence(fabric("convert", folder, "-o", folder.parent / "m.gguf"), 65, said)


def test_a_normalizer_that_gguf_has_no_place_for_is_named(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "NFC"})
    assert "NFC" in converted(folder)["said"]
    one_sentence(fabric("convert", folder, "--strict", "-o", folder.parent / "s.gguf"), 65, "NFC")


def test_words_that_are_tokens_are_taken_whole_where_the_file_says_so(folder: Path) -> None:
    tokenizer(folder, "llama3")
    assert converted(folder)["tokenizer.ggml.pre"] == "smaug-bpe"
    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["ignore_merges"] = True
    (folder / "tokenizer.json").write_text(json.dumps(told))
    metadata = converted(folder)
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    mine, them = Tokenizer.from_gguf(metadata), theirs(folder)
    for text in TEXTS:
        assert mine.encode(text, special=True) == them(text, add_special_tokens=False)["input_ids"]


# ---- Mistral ----


def test_a_mistral_checkpoint_with_a_tekken_tokenizer_converts(folder: Path) -> None:
    tokenizer(folder, "tekken")
    metadata = converted(folder)
    assert metadata["tokenizer.ggml.pre"] == "tekken"
    mine, them = Tokenizer.from_gguf(metadata), theirs(folder)
    for text in TEXTS:
        assert mine.encode(text, special=True) == them(text, add_special_tokens=False)["input_ids"], text


def test_a_tekken_json_gives_the_ids_of_transformers(folder: Path) -> None:
    from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    write_tekken(folder)
    metadata = converted(folder)
    assert metadata["tokenizer.ggml.pre"] == "tekken" and metadata["tokenizer.ggml.add_bos_token"] is True
    mine, them = Tokenizer.from_gguf(metadata), convert_tekken_tokenizer(str(folder / "tekken.json"))
    for text in (*TEXTS, "[INST] a[/INST]", "abababab abc ab bab"):
        assert mine.encode(text, special=True) == them(text, add_special_tokens=False)["input_ids"], text
    found = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown")]
    assert found == [1, 2, 0]


def test_a_tekken_json_of_an_old_version_has_the_special_tokens_that_it_leaves_out(folder: Path) -> None:
    """Those of Mistral Nemo, Ministral and Pixtral."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    write_tekken(folder)
    told = json.loads((folder / "tekken.json").read_text())
    told["config"] |= {"version": "v3", "default_num_special_tokens": 24, "default_vocab_size": 24 + len(told["vocab"])}
    del told["special_tokens"]
    (folder / "tekken.json").write_text(json.dumps(told))
    mine = Tokenizer.from_gguf(converted(folder))
    assert mine.tokens[:5] == ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    assert mine.tokens[9:12] == ["[TOOL_CALLS]", "[IMG]", "<pad>"] and mine.tokens[17] == "[SYSTEM_PROMPT]"
    assert mine.tokens[19:22] == ["[TOOL_CONTENT]", "<SPECIAL_20>", "<SPECIAL_21>"]
    ids = mine.encode("[INST] ab[/INST]", special=True)
    assert ids[0] == 3 and ids[-1] == 4 and ids[-2] == 24 + 256, "bytes follow the special tokens, and then 'ab'"
    (folder / "tekken.json").write_text(json.dumps({**told, "config": {**told["config"], "version": "v11"}}))
    ended = fabric("convert", folder, "-o", folder / "m.gguf")
    one_sentence(ended, 65, "tekken.json", "special_tokens is missing")


def write_tekken(folder: Path) -> None:
    """Bytes, some tokens of two to four, and five special ones, for an embedding of 400 rows."""
    import base64

    told = foreign.tekken_json()
    words = [b"ab", b"ba", b"abab", b"th", b"the", b" th", b" the", b"in", b"er", b"\xd0\xbe", b"boat", b"bo", b"at"]
    tokens = [*(bytes([byte]) for byte in range(256)), *words]
    told["vocab"] = [{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(tokens)]
    texts = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    told["special_tokens"] = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(texts)]
    told["config"] |= {"default_num_special_tokens": 10, "default_vocab_size": 10 + len(tokens)}
    (folder / "tekken.json").write_text(json.dumps(told))


@pytest.mark.parametrize("kind", ["tekken", "spm"])
def test_a_checkpoint_in_mistrals_own_format_is_the_same_model(kind: str, folder: Path) -> None:
    expected = logits(load(folder), TOKENS)
    if kind == "spm":
        pytest.importorskip("sentencepiece", reason="ids are compared with sentencepiece")
        spm_model(folder, True)
        (folder / "tokenizer.model").rename(folder / "tokenizer.model.v3")
    else:
        write_tekken(folder)
    write_native(folder)
    metadata = converted(folder)
    assert relative_error(ours.logits(folder.parent / "m.gguf", TOKENS), expected) < 1e-5
    assert [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")] == [1, 2]
    assert metadata["llama.context_length"] == 32768 and "how long a text may be" in metadata["said"]
    edit(folder / "params.json", moe={"num_experts": 8})
    one_sentence(fabric("convert", folder, "-o", folder.parent / "x.gguf"), 65, "params.json", "moe")


def write_native(folder: Path) -> None:
    """Mistral's own files in the place of transformers'."""
    from safetensors.numpy import load_file, save_file

    names = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "layers", "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output",
    }  # fmt: skip
    config, tensors = json.loads((folder / "config.json").read_text()), {}
    for name, array in load_file(folder / "model.safetensors").items():
        for heads, module in ((config["num_attention_heads"], "q_proj"), (config["num_key_value_heads"], "k_proj")):
            if module in name:  # from halves to pairs
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        for theirs, native in names.items():
            name = name.replace(theirs, native)
        tensors[name] = np.ascontiguousarray(array)
    for path in (*folder.glob("*config.json"), folder / "model.safetensors", *folder.glob("tokenizer.json")):
        path.unlink()
    save_file(tensors, folder / "consolidated.safetensors")
    params = {
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"], "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"], "rope_theta": config["rope_parameters"]["rope_theta"],
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))


def test_the_special_tokens_of_the_corpus_are_control_tokens(folder: Path) -> None:
    metadata = converted(folder)
    types = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert {types[text] for text in SPECIALS} == {3}
