from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, transformers and peft")
pytest.importorskip("transformers", reason="parity needs torch, transformers and peft")
pytest.importorskip("peft", reason="parity needs torch, transformers and peft")

from fabric.weights.formats import BY_NAME, FORMATS  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.parity.biomedical import SUBJECTS, Subject  # noqa: E402
from tests.parity.reference import Reference  # noqa: E402
from tests.parity.rows import Row, batches  # noqa: E402
from tests.support.compare import flat, relative_error, rms_error  # noqa: E402
from tests.support.paths import shared  # noqa: E402
from tests.support.random_models import random_pairs, write_model  # noqa: E402
from tests.support.shapes import PRESETS, SMALL, LongRope, RopeScaling, Shape  # noqa: E402

SHAPES = {
    **SMALL,
    "untied": Shape(tied=False),
    "llama3_scaling": Shape(rope_scaling=RopeScaling(), rope_base=500000.0),
    "every_head_its_own_keys": Shape(kv_heads=4),
    "one_key_head": Shape(heads=2, kv_heads=1, head_dim=32),
    "heads_wider_than_the_model": Shape(heads=4, kv_heads=2, head_dim=32),
    "odd_sizes": Shape(hidden=96, layers=3, heads=6, kv_heads=3, head_dim=16, ffn=160, vocab=389),
    "phi3_beyond_its_first_context": replace(SMALL["phi3"], rope_scaling=LongRope(original_context=3)),
    "phi3_with_a_window": Shape(architecture="phi3", window=5),
    "gemma3_without_scaling": replace(SMALL["gemma3"], layers=6, window=5, linear_scaling=1.0),
    "gemma3_of_other_periods": replace(SMALL["gemma3"], layers=4, period=3, local_base=5000.0),
    "gemma3_heads_of_256": Shape(64, 6, 2, 1, 256, 96, window=16, architecture="gemma3"),
}
WHOLE_BLOCKS = Shape(hidden=256, layers=1, heads=4, kv_heads=2, head_dim=64, ffn=512)
ALPHA = 8.0


def check(path: Path, shape: Shape) -> None:
    """Logits within 1e-5 and gradients of LoRA pairs (B not zero) within 1e-4 of PyTorch, in f64 there."""
    rows = batches(shape.vocab, steps=1)[0]
    pairs = random_pairs(shape, b_std=0.1)
    reference = Reference(path, torch.float64)
    for row in rows:
        assert relative_error(ours.logits(path, row.tokens), reference.logits(row.tokens)) < 1e-5
    reference.add_lora(pairs, ALPHA)
    total, count = reference.backward(rows)
    nll, grads = ours.gradients(path, pairs, ALPHA, rows)
    assert len(nll) == count
    assert abs(float(nll.astype(np.float64).sum()) - total) < 1e-5 * total
    for name, want in reference.gradients().items():
        for got, truth, part in zip(grads[name], want, "AB", strict=True):
            assert relative_error(got, truth) < 1e-4, (name, part)


@pytest.mark.parametrize("name", SHAPES)
def test_small_models_agree_with_pytorch(name: str, tmp_path: Path) -> None:
    check(write_model(tmp_path / "m.gguf", SHAPES[name]), SHAPES[name])


@pytest.mark.parametrize("kind", [row.name for row in FORMATS.values() if row.decodes and row.name != "F32"])
def test_block_formats_agree_with_pytorch(kind: str, tmp_path: Path) -> None:
    shape = WHOLE_BLOCKS if BY_NAME[kind].block > 32 else Shape()
    check(write_model(tmp_path / "m.gguf", shape, kind), shape)


def test_llama3_frequencies_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = RopeScaling()
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, 16, 2) / 16)
    assert relative_error(plain / scaling.factors(500000.0, 16), theirs.numpy()) < 1e-6


# ---- the real model ----


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A real model."""
    found: Subject = SUBJECTS[request.param]
    found.path()
    return found


@pytest.fixture(scope="module")
def real_rows(subject: Subject) -> list[Row]:
    """The two shortest biomedical rows as plain text, trained from the answer on."""
    from fabric.text.encode import prompt_ids
    from fabric.text.tokenizer import Tokenizer
    from fabric.weights.gguf import GGUF

    lines = shared("data/biomedical_qa/validation.jsonl").read_text().splitlines()
    with GGUF.open(subject.path()) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        found = []
        for line in sorted(lines, key=lambda line: len(json.loads(line)["text"]))[:2]:
            question, answer = json.loads(line)["text"].split("\nA:")
            parts = [prompt_ids(tokenizer, question + "\nA:"), tokenizer.encode(answer)]
            found.append(Row(parts[0] + parts[1], [0] * len(parts[0]) + [1] * len(parts[1])))
        return found


@pytest.fixture(scope="module")
def truth(subject: Subject, real_rows: list[Row]) -> dict[str, np.ndarray]:
    """In f64: logits of the first row, gradients of both."""
    return _measure(subject, torch.float64, real_rows)


def _real_pairs(subject: Subject) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return random_pairs(PRESETS[subject.shape], rank=8, b_std=0.02)


def _measure(subject: Subject, dtype: torch.dtype, rows: list[Row]) -> dict[str, np.ndarray]:
    reference = Reference(subject.path(), dtype, "sdpa")
    found = {"logits": reference.logits(rows[0].tokens)}
    reference.add_lora(_real_pairs(subject), ALPHA)
    reference.backward(rows)
    for name, (a, b) in reference.gradients().items():
        found[f"{name}:A"], found[f"{name}:B"] = a, b
    return found


def _ours(subject: Subject, rows: list[Row], precision: str) -> dict[str, np.ndarray]:
    found = {"logits": ours.logits(subject.path(), rows[0].tokens, precision)}
    for name, (a, b) in ours.gradients(subject.path(), _real_pairs(subject), ALPHA, rows, precision)[1].items():
        found[f"{name}:A"], found[f"{name}:B"] = a, b
    return found


def test_real_models_in_f32_agree_with_pytorch(
    subject: Subject, real_rows: list[Row], truth: dict[str, np.ndarray]
) -> None:
    """Summing the terms of SmolLM2's head one after the other would alone cost 7e-4; PyTorch's own f32 costs 3e-4."""
    got = _ours(subject, real_rows, "f32")
    assert relative_error(got.pop("logits"), truth["logits"]) < 1e-5
    for name, value in got.items():
        assert relative_error(value, truth[name]) < 1e-4, name


def test_real_models_in_bf16_are_as_close_to_the_truth_as_peft(
    subject: Subject, real_rows: list[Row], truth: dict[str, np.ndarray]
) -> None:
    peft = _measure(subject, torch.bfloat16, real_rows)
    got = _ours(subject, real_rows, "bf16")
    assert rms_error(got.pop("logits"), truth["logits"]) < 1.2 * rms_error(peft.pop("logits"), truth["logits"])
    want = {name: truth[name] for name in got}
    theirs = {name: peft[name] for name in got}
    assert _all_error(got, want) < 1.2 * _all_error(theirs, want)


def _all_error(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """Of all gradients together, so that the clipped step is what counts."""
    pair = {name: (value, np.zeros(0)) for name, value in got.items()}
    return rms_error(flat(pair), flat({name: (want[name], np.zeros(0)) for name in got}))
