from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("xllamacpp", reason="this parity needs stock llama.cpp: pip install xllamacpp")
pytest.importorskip("gguf", reason="this parity needs the gguf package")

from fabric.weights.adapter import Adapter, LoraPair, write_adapter
from fabric.weights.merge import merge
from fabric.weights.quantize import quantize
from fabric.weights.settings import AdapterInput, MergeSettings, QuantizeSettings
from tests.cli.shell import fabric
from tests.parity import ours
from tests.parity.ours import write_rows
from tests.parity.rows import Row, batches
from tests.support.compare import log_softmax, mean_kl, mean_nll, relative_error
from tests.support.decoded import decoded_copy
from tests.support.llama_cpp import Llama
from tests.support.paths import shared, smollm2
from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import SMALL, LongRope, RopeScaling, Shape

SHAPES = {
    **SMALL,
    "llama": Shape(rope_scaling=RopeScaling()),
    "bitnet": replace(SMALL["bitnet"], own=()),  # not every release computes another activation than SiLU
}
HEADS = {
    "phi3_beyond_its_first_context": replace(SMALL["phi3"], rope_scaling=LongRope(original_context=3)),
    "untied": Shape(tied=False),
    "one_key_head": Shape(heads=2, kv_heads=1, head_dim=32),
}
ALPHA = 8.0
F32_BOUND = 1e-3  # of the largest logit
TIE = 0.1  # nats: closer candidates are a near-tie


def write_random_adapter(path: Path, shape: Shape, b_std: float) -> Path:
    pairs = {name: LoraPair(a, b) for name, (a, b) in random_pairs(shape, rank=8, b_std=b_std).items()}
    with path.open("wb") as out:
        write_adapter(out, Adapter(shape.architecture, ALPHA, pairs))
    return path


def stock(model: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    with Llama(model, adapter) as llama:
        return llama.logits(tokens)


@pytest.mark.parametrize("name", [*SHAPES, *HEADS])
def test_stock_llama_cpp_sees_the_logits_we_see(name: str, tmp_path: Path) -> None:
    shape = {**SHAPES, **HEADS}[name]
    model = write_model(tmp_path / "m.gguf", shape)
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, shape.vocab, 60)]
    assert relative_error(ours.logits(model, tokens), stock(model, tokens)) < F32_BOUND


@pytest.mark.parametrize("name", SHAPES)
def test_stock_llama_cpp_loads_the_adapter_and_it_does_what_merging_does(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    model = write_model(tmp_path / "m.gguf", shape)
    adapter = write_random_adapter(tmp_path / "a.gguf", shape, 0.1)
    merged = tmp_path / "merged.gguf"
    merge(MergeSettings(str(model), (AdapterInput(str(adapter)),), str(merged), type="keep"))
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, shape.vocab, 60)]
    base, beside, inside = stock(model, tokens), stock(model, tokens, adapter), stock(merged, tokens)
    assert relative_error(beside, base) > 0.01, "the adapter changes nothing"
    assert relative_error(beside, inside) < F32_BOUND
    assert relative_error(ours.logits(merged, tokens), inside) < F32_BOUND


@pytest.mark.parametrize("name", SHAPES)
def test_stock_llama_cpp_loads_what_we_quantized(name: str, tmp_path: Path) -> None:
    """On an F32 copy of its blocks stock agrees with us as on any F32 file: that is what the file means. On the file
    itself stock rounds activations to 8 bits as well and may stray from us no further than from that copy.
    """
    shape = SHAPES[name]
    model, quantized = write_model(tmp_path / "m.gguf", shape), tmp_path / "q.gguf"
    quantize(QuantizeSettings(str(model), str(quantized), "q8_0"))
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, shape.vocab, 60)]
    truth = stock(decoded_copy(quantized, tmp_path / "decoded.gguf"), tokens)
    theirs, got = stock(quantized, tokens), ours.logits(quantized, tokens)
    assert relative_error(got, truth) < F32_BOUND
    assert mean_kl(theirs, got) < max(1e-3, 1.05 * mean_kl(theirs, truth))


@pytest.mark.parametrize(("name", "kind"), [("llama", "f32"), ("llama", "q8_0"), ("gemma3", "f32")])
def test_stock_llama_cpp_loads_a_model_whose_every_weight_was_trained(name: str, kind: str, tmp_path: Path) -> None:
    """On F32 it sees the logits we see; on blocks, which make it round activations too, the same distribution."""
    shape = SMALL[name]
    base = write_model(tmp_path / "m.gguf", shape, "Q8_0")
    tuned = train_full(tmp_path, base, write_rows(tmp_path / "rows.jsonl", batches(shape.vocab, 2)), "--type", kind)
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, shape.vocab, 60)]
    theirs = stock(tuned, tokens)
    assert relative_error(stock(base, tokens), theirs) > 0.01, "training changed nothing"
    if kind == "f32":
        assert relative_error(ours.logits(tuned, tokens), theirs) < F32_BOUND
    else:
        assert mean_kl(theirs, ours.logits(tuned, tokens)) < 1e-3


def train_full(folder: Path, base: Path, rows: Path, *flags: str) -> Path:
    """Four steps on whole weights, through the command."""
    out = folder / "tuned.gguf"
    done = fabric(
        *("train", rows, "-m", base, "-o", out, "--full", "--run-dir", folder / "run", "--metrics", folder / "m.jsonl"),
        *("--steps", "4", "--batch", "3", "--lr", "1e-3", "--ctx", "64", "--checkpoint-every", "9", *flags),
        timeout=600,
    )
    assert done.code == 0, done.err
    return out


# ---- the real model ----


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random adapter of SmolLM2 and the two merged in F32: half a gigabyte, removed at the end."""
    folder = tmp_path_factory.mktemp("real")
    adapter = write_random_adapter(folder / "adapter.gguf", Shape(576, 30, 9, 3, 64, 1536, 49152), 0.02)
    merge(MergeSettings(str(smollm2()), (AdapterInput(str(adapter)),), str(folder / "merged.gguf"), type="f32"))
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    """Token ids of two questions with their answers."""
    lines = shared("data/biomedical_qa/validation.jsonl").read_text().splitlines()[:2]
    with Llama(smollm2()) as llama:
        return [llama.tokenize(json.loads(line)["text"]) for line in lines]


def test_smollm2_trained_whole_learns_and_is_the_same_model_in_stock_llama_cpp(
    texts: list[list[int]], tmp_path: Path
) -> None:
    short = [Row(tokens[:30], [0] + [1] * 29) for tokens in texts]
    rows = write_rows(tmp_path / "rows.jsonl", [short])
    tuned = train_full(tmp_path, smollm2(), rows, "--lr", "1e-4", "--type", "f32")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    tokens = texts[0][:30]
    with Llama(tuned) as llama:
        assert relative_error(ours.logits(tuned, tokens), llama.logits(tokens)) < F32_BOUND
    for file in (tuned, *(tmp_path / "run").glob("*.ckpt")):
        file.unlink()  # two gigabytes


def test_merged_smollm2_in_f32_is_the_same_model_in_stock_llama_cpp(work: Path, texts: list[list[int]]) -> None:
    with Llama(work / "merged.gguf") as llama:
        for tokens in texts:
            theirs, got = llama.logits(tokens), ours.logits(work / "merged.gguf", tokens)
            assert relative_error(got, theirs) < F32_BOUND
            assert abs(np.expm1(mean_nll(got, tokens) - mean_nll(theirs, tokens))) < 1e-3


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_1", "q4_k_m"])
def test_quantized_smollm2_is_the_same_model_in_stock_llama_cpp(
    kind: str, work: Path, texts: list[list[int]], tmp_path: Path
) -> None:
    """On an F32 copy of the file's blocks stock agrees with us as on any F32 file: that is what the file means.

    On the file itself stock rounds activations to 8 bits (or 16) as well and strays from its own F32 copy; from us it
    may stray no further than that.
    """
    model = tmp_path / "q.gguf"
    quantize(QuantizeSettings(str(work / "merged.gguf"), str(model), kind))
    decoded = decoded_copy(model, tmp_path / "decoded.gguf")
    with Llama(decoded) as plain, Llama(model) as rounding:
        truth = np.concatenate([plain.logits(tokens) for tokens in texts])
        theirs = np.concatenate([rounding.logits(tokens) for tokens in texts])
    got = np.concatenate([ours.logits(model, tokens) for tokens in texts])
    assert relative_error(got, truth) < F32_BOUND
    own, ids = mean_kl(theirs, truth), [t for tokens in texts for t in tokens]
    assert mean_kl(theirs, got) < max(1e-3, 1.05 * own)
    strayed = abs(np.expm1(mean_nll(theirs, ids) - mean_nll(truth, ids)))
    bound = 1e-3 if kind == "f16" else 5e-3
    assert abs(np.expm1(mean_nll(got, ids) - mean_nll(theirs, ids))) < max(bound, 1.05 * strayed)
    best = np.sort(log_softmax(truth), -1)
    clear = best[:, -1] - best[:, -2] > TIE
    differ, own_differ = (int((choice.argmax(-1) != theirs.argmax(-1))[clear].sum()) for choice in (got, truth))
    assert differ <= own_differ


def test_greedy_text_is_that_of_stock_llama_cpp_until_a_near_tie(work: Path) -> None:
    """Our greedy continuation, token by token through the cache, is stock's too, or parts from it at a near-tie."""
    model = work / "merged.gguf"
    with Llama(model) as llama:
        prompt = llama.tokenize("<|im_start|>user\nName the four seasons.<|im_end|>\n<|im_start|>assistant\n")
        answer = ours.greedy(model, prompt, 24)
        log_p = log_softmax(llama.logits(prompt + answer)[len(prompt) - 1 : -1])
    for row, token in zip(log_p, answer, strict=True):
        second, best = np.sort(row)[-2:]
        if token != int(row.argmax()):
            assert best - second < TIE
            break
