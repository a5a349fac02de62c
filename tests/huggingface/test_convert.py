from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="conversion is compared with torch, transformers and peft")
pytest.importorskip("transformers", reason="conversion is compared with torch, transformers and peft")
pytest.importorskip("peft", reason="conversion is compared with torch, transformers and peft")

from fabric.models import architectures  # noqa: E402
from fabric.text.tokenizer import Tokenizer  # noqa: E402
from fabric.weights.gguf import GGUF  # noqa: E402
from tests.cli.shell import fabric, one_sentence, shell  # noqa: E402
from tests.huggingface import checkpoints  # noqa: E402
from tests.huggingface.checkpoints import TEXTS, VOCAB, checkpoint, edit, load, logits, tokenizer  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.support.compare import relative_error  # noqa: E402

TOKENS = [1, 17, 5, 302, 44, 17, 9, 380, 250, 61, 77, 3, 4, 21, 22, 23, 24, 199, 210, 305, 33]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and what it was converted to."""
    folder = tmp_path_factory.mktemp("llama")
    checkpoint(folder / "hf", "llama")
    assert fabric("convert", folder / "hf", "-o", folder / "m.gguf").code == 0
    return folder / "hf", folder / "m.gguf"


# ---- models ----


@pytest.mark.parametrize("name", checkpoints.KINDS)
def test_a_converted_model_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "hf", name)
    told = fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["architecture"] in architectures()
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), logits(model, TOKENS)) < 1e-5


def test_llama_cpp_computes_the_same_from_a_converted_model(llama: tuple[Path, Path]) -> None:
    pytest.importorskip("xllamacpp", reason="files are compared with stock llama.cpp")
    from tests.support.llama_cpp import Llama

    with Llama(llama[1]) as stock:
        assert relative_error(stock.logits(TOKENS), logits(load(llama[0]), TOKENS)) < 1e-3


def test_a_checkpoint_streams_through_quantize(tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", "llama", dtype="bfloat16")
    ended = shell("fabric convert hf | fabric quantize --type q8_0 -o m.gguf && fabric inspect m.gguf --json", tmp_path)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["types"]["Q8_0"]["tensors"] == 16
    assert [made["command"] for made in told["history"]] == ["convert", "quantize"]


def test_half_precision_weights_keep_their_type_unless_told(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "hf", "llama", dtype="bfloat16")
    assert fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf").code == 0
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        assert {info.type_name for info in gguf.tensors.values() if len(info.shape) == 2} == {"BF16"}
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), logits(model, TOKENS)) < 1e-5
    assert fabric("convert", tmp_path / "hf", "-o", tmp_path / "f.gguf", "--type", "f32").code == 0
    assert np.array_equal(ours.logits(tmp_path / "f.gguf", TOKENS), ours.logits(tmp_path / "m.gguf", TOKENS))


def test_a_checkpoint_in_several_files_is_one_model(llama: tuple[Path, Path], tmp_path: Path) -> None:
    model = load(llama[0])
    shutil.copytree(llama[0], tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf").code == 0
    assert np.array_equal(ours.logits(tmp_path / "m.gguf", TOKENS), ours.logits(llama[1], TOKENS))


# ---- tokenizers ----


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen35", "smollm", "gpt2", "gpt4o"])
def test_a_converted_tokenizer_gives_the_same_ids(kind: str, llama: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "hf")
    theirs = tokenizer(tmp_path / "hf", kind)
    assert fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf").code == 0
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        mine = Tokenizer.from_gguf(gguf.metadata)
        assert gguf.metadata["tokenizer.ggml.bos_token_id"] == 1
        assert gguf.metadata["tokenizer.ggml.eos_token_id"] == 2
    assert mine.chat_template == theirs.chat_template
    for text in TEXTS:
        assert mine.encode(text, special=True) == theirs(text, add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_in_a_tokenizer_json_gives_the_same_ids(
    prefix: bool, llama: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(llama[0], tmp_path / "hf")
    theirs = checkpoints.spm_json(tmp_path / "hf", prefix)
    for text in TEXTS[:-2]:
        assert converted_tokenizer(tmp_path).encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_gemma_4_as_it_is_published_converts(tmp_path: Path) -> None:
    """One setting for heads that see all, keys and values that no layer uses, and a vocabulary known by its merges."""
    from safetensors.torch import load_file, save_file

    model = checkpoint(tmp_path / "hf", "gemma4")
    theirs = checkpoints.spm_json(tmp_path / "hf", prefix=False, lines=True)
    edit(tmp_path / "hf" / "config.json", per_layer_config=None, global_head_dim=32)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights["model.layers.3.self_attn.k_proj.weight"] = torch.ones(32, 64)
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    for text in TEXTS[:-2]:
        assert converted_tokenizer(tmp_path).encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    with GGUF.open(tmp_path / "m.gguf") as gguf:
        assert gguf.metadata["tokenizer.ggml.model"] == "gemma4"
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS), logits(model, TOKENS)) < 1e-5
    pytest.importorskip("xllamacpp", reason="files are compared with stock llama.cpp")
    from tests.support.llama_cpp import Llama

    with Llama(tmp_path / "m.gguf") as stock:
        assert relative_error(stock.logits(TOKENS), logits(model, TOKENS)) < 1e-3
        assert stock.tokenize(TEXTS[0]) == converted_tokenizer(tmp_path).encode(TEXTS[0])


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_model_gives_the_ids_of_sentencepiece(
    prefix: bool, llama: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("sentencepiece", reason="ids are compared with sentencepiece")
    shutil.copytree(llama[0], tmp_path / "hf")
    theirs = checkpoints.spm_model(tmp_path / "hf", prefix)
    for text in TEXTS:
        if prefix and text.startswith("<|im_start|>"):
            continue  # SentencePiece puts a space before a special token too; llama.cpp, and so we, does not
        assert converted_tokenizer(tmp_path).encode(text) == theirs.encode(text), text


def converted_tokenizer(folder: Path) -> Tokenizer:
    """Of `hf` there, converted at the first call."""
    if not (folder / "m.gguf").exists():
        ended = fabric("convert", folder / "hf", "-o", folder / "m.gguf")
        assert ended.code == 0, ended.err
    with GGUF.open(folder / "m.gguf") as gguf:
        return Tokenizer.from_gguf(gguf.metadata)


@pytest.mark.parametrize("bad", [b"", b"\x0a\xff\xff\xff\xff\x7f", b"\xff" * 40, b"\x0a\x03\x0a\x01\xff"])
def test_a_broken_tokenizer_model_is_refused(bad: bytes, llama: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").unlink()
    (tmp_path / "hf" / "tokenizer.model").write_bytes(bad)
    one_sentence(fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf"), 65, "tokenizer.model")


# ---- adapters ----


def peft_adapter(base: Path, folder: Path, **settings: object) -> list[float]:
    """Saves a PEFT adapter with pairs that change something; returns its logits."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model = get_peft_model(load(base), config).eval()
    model.save_pretrained(folder)
    return logits(model, TOKENS)


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ALL},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": ALL, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3, "layers.1.k_proj": 5}},
    ],
)
def test_an_adapter_of_peft_changes_what_it_changed_there(
    settings: dict[str, object], llama: tuple[Path, Path], tmp_path: Path
) -> None:
    theirs = peft_adapter(llama[0], tmp_path / "peft", **settings)
    assert fabric("convert", tmp_path / "peft", "-m", llama[1], "-o", tmp_path / "a.gguf").code == 0
    merged = fabric("merge", "-m", llama[1], "-a", tmp_path / "a.gguf", "--type", "f32", "-o", tmp_path / "merged.gguf")
    assert merged.code == 0, merged.err
    assert relative_error(ours.logits(tmp_path / "merged.gguf", TOKENS), theirs) < 1e-5


@pytest.mark.parametrize("settings", [{"target_modules": ALL}, {"target_modules": ALL, "rank_pattern": {"q_proj": 2}}])
def test_an_adapter_comes_back_from_gguf_to_peft_as_it_was(
    settings: dict[str, object], llama: tuple[Path, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    theirs = peft_adapter(llama[0], tmp_path / "peft", **settings)
    script = f"fabric convert peft -m {llama[1]} -o a.gguf && fabric convert a.gguf -m {llama[1]} -o back"
    assert shell(script, tmp_path).code == 0
    model = PeftModel.from_pretrained(load(llama[0]), tmp_path / "back").eval()
    assert relative_error(logits(model, TOKENS), theirs) < 1e-5
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize(
    "name",
    [
        "bitnet",
        "exaone4",
        "gemma2",
        "gemma4",
        "granite",
        "lfm2",
        "mistral3",
        "olmo2",
        "phi3",
        "qwen35",
        "qwen3moe",
        "smollm3",
    ],
)
def test_adapters_of_every_architecture_go_to_gguf_and_back(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    checkpoint(tmp_path / "hf", name)
    modules = [*ALL[:-1], "qkv_proj", "gate_up_proj", "in_proj", "out_proj", "w1", "w2", "w3"]
    modules += ["per_layer_input_gate", "per_layer_projection", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"]
    modules = ALL[:4] if name == "qwen3moe" else modules
    theirs = peft_adapter(tmp_path / "hf", tmp_path / "peft", target_modules=modules)
    script = (
        "convert hf -o m.gguf && fabric convert peft -m m.gguf -o a.gguf && fabric convert a.gguf -m m.gguf -o back"
    )
    ended = shell(f"fabric {script}", tmp_path)
    assert ended.code == 0, ended.err
    assert relative_error(ours.logits(tmp_path / "m.gguf", TOKENS, adapter=tmp_path / "a.gguf"), theirs) < 1e-5
    model = PeftModel.from_pretrained(load(tmp_path / "hf"), tmp_path / "back").eval()
    assert relative_error(logits(model, TOKENS), theirs) < 1e-5


# ---- what cannot be converted ----


def test_pairs_of_experts_have_no_counterpart_in_peft(tmp_path: Path) -> None:
    from tests.parity.test_llama_cpp import write_random_adapter
    from tests.support.random_models import write_model
    from tests.support.shapes import SMALL

    model = write_model(tmp_path / "m.gguf", SMALL["qwen3moe"])
    adapter = write_random_adapter(tmp_path / "a.gguf", SMALL["qwen3moe"], 0.1)
    ended = fabric("convert", adapter, "-m", model, "-o", tmp_path / "peft")
    one_sentence(ended, 65, "blk.0.ffn_gate_exps.weight", "PEFT")
    assert not (tmp_path / "peft").exists()


def test_a_class_without_a_counterpart_is_named(llama: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "hf")
    edit(tmp_path / "hf" / "config.json", architectures=["BertModel"])
    one_sentence(fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf"), 65, "BertModel", "LlamaForCausalLM")
    assert not (tmp_path / "m.gguf").exists()


def test_a_cut_or_lying_safetensors_file_leaves_nothing(llama: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    whole = weights.read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    header["model.norm.weight"]["data_offsets"] = [0, 4]
    lie = json.dumps(header).encode()
    for bad in (whole[:-100], whole[:5], b"", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", len(lie)) + lie):
        weights.write_bytes(bad)
        one_sentence(fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf"), 65, "model.safetensors")
    weights.unlink()
    one_sentence(fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf"), 66, "safetensors")
    assert not list(tmp_path.glob("*.gguf*"))


def test_an_embedding_smaller_than_the_vocabulary_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(llama[0], tmp_path / "hf")
    told = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    told["added_tokens"].append({"id": VOCAB, "content": "<extra>", "special": True})
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(told))
    one_sentence(fabric("convert", tmp_path / "hf", "-o", tmp_path / "m.gguf"), 65, str(VOCAB))


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "LOHA"}, {"lora_alpha": "x"}])
def test_an_adapter_that_gguf_cannot_say_is_refused(
    change: dict[str, object], llama: tuple[Path, Path], tmp_path: Path
) -> None:
    peft_adapter(llama[0], tmp_path / "peft", target_modules=["q_proj"])
    edit(tmp_path / "peft" / "adapter_config.json", **change)
    ended = fabric("convert", tmp_path / "peft", "-m", llama[1], "-o", tmp_path / "a.gguf")
    one_sentence(ended, 65, "adapter_config.json")
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_of_another_base_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    peft_adapter(llama[0], tmp_path / "peft", target_modules=["gate_proj"])
    other = write_model(tmp_path / "other.gguf", Shape(ffn=128))
    ended = fabric("convert", tmp_path / "peft", "-m", other, "-o", tmp_path / "a.gguf")
    one_sentence(ended, 65, "another base")


def test_wrong_usage_is_told(llama: tuple[Path, Path], tmp_path: Path) -> None:
    peft_adapter(llama[0], tmp_path / "peft", target_modules=["q_proj"])
    one_sentence(fabric("convert", tmp_path / "peft", "-o", tmp_path / "a.gguf"), 2, "-m")
    one_sentence(fabric("convert", llama[0], "-m", llama[1], "-o", tmp_path / "b.gguf"), 2, "-m", "checkpoint")
    one_sentence(
        fabric("convert", tmp_path / "peft", "-m", llama[1], "--type", "f16", "-o", tmp_path / "a.gguf"), 2, "--type"
    )
    one_sentence(fabric("convert", tmp_path / "nowhere", "-o", tmp_path / "a.gguf"), 66, "nowhere")
    one_sentence(fabric("convert", llama[0], "-o", tmp_path / "a.gguf", "--type", "q4_0"), 2, "quantize")
    assert fabric("convert", tmp_path / "peft", "-m", llama[1], "-o", tmp_path / "a.gguf").code == 0
    one_sentence(fabric("convert", tmp_path / "a.gguf", "-m", llama[1], "-o", tmp_path / "peft"), 2, "exists")
    one_sentence(fabric("convert", tmp_path / "a.gguf", "-m", llama[1]), 2, "-o")
