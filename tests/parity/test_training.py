from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, transformers and peft")
pytest.importorskip("transformers", reason="parity needs torch, transformers and peft")
peft = pytest.importorskip("peft", reason="parity needs torch, transformers and peft")

from fabric.training.run import train as fabric_train  # noqa: E402
from fabric.training.settings import SILENT, TrainSettings  # noqa: E402
from fabric.weights.adapter import Adapter, LoraPair, read_adapter, write_adapter  # noqa: E402
from fabric.weights.gguf import GGUF  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.parity.reference import Pairs, Recipe, Reference, train  # noqa: E402
from tests.parity.rows import batches  # noqa: E402
from tests.support.compare import flat, rms_error  # noqa: E402
from tests.support.random_models import random_pairs, write_model  # noqa: E402
from tests.support.shapes import SMALL, RopeScaling  # noqa: E402

ALPHA, STEPS, VOCAB = 8.0, 20, 320
SHAPES = {**SMALL, "llama": replace(SMALL["llama"], layers=3, rope_scaling=RopeScaling())}


def run_ours(folder: Path, model: Path, pairs: Pairs, **settings: Any) -> tuple[list[float], Pairs]:
    """Losses and final pairs of a run over the same batches from the same pairs."""
    with GGUF.open(model) as gguf:
        architecture = gguf.architecture
    with (folder / "start.gguf").open("wb") as out:
        write_adapter(out, Adapter(architecture, ALPHA, {name: LoraPair(a, b) for name, (a, b) in pairs.items()}))
    chosen = TrainSettings(
        data=str(ours.write_rows(folder / "rows.jsonl", batches(VOCAB, STEPS, rows=4))),
        model=str(model),
        output=str(folder / "tuned.gguf"),
        adapter=str(folder / "start.gguf"),
        run_dir=str(folder / "run"),
        metrics=str(folder / "metrics.jsonl"),
        **{
            "epochs": 1,
            "batch": 4,
            "ctx": 512,
            "lr": 5e-3,
            "shuffle": False,
            "precision": "f32",
            "threads": 2,
            "device": "cpu",
            **settings,
        },
    )
    fabric_train(chosen, SILENT)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tuned = read_adapter(folder / "tuned.gguf")
    return losses, {name: (pair.a, pair.b) for name, pair in tuned.pairs.items()}


def run_peft(
    model: Path, pairs: Pairs, dtype: torch.dtype = torch.float64, lora_plus: float = 1.0
) -> tuple[list[float], Pairs]:
    reference = Reference(model, dtype)
    reference.add_lora(pairs, ALPHA)
    steps = list(train(reference, batches(VOCAB, STEPS, rows=4), Recipe(STEPS, lr=5e-3, lora_plus=lora_plus)))
    return [step.loss for step in steps], reference.pairs()


@pytest.mark.parametrize(("name", "pack"), [("llama", False), *((name, True) for name in SHAPES)])
def test_twenty_steps_follow_peft(name: str, pack: bool, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", SHAPES[name], "Q8_0")
    pairs = random_pairs(SHAPES[name], b_std=0.1)
    theirs, end = run_peft(model, pairs)
    losses, tuned = run_ours(tmp_path, model, pairs, pack=pack)
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    assert rms_error(flat(tuned), flat(end)) < 1e-3


def test_the_rates_of_lora_plus_are_those_of_peft(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", SHAPES["llama"], "Q8_0")
    pairs = random_pairs(SHAPES["llama"], b_std=0.1)
    theirs, end = run_peft(model, pairs, lora_plus=4.0)
    losses, tuned = run_ours(tmp_path, model, pairs, lora_plus=4.0)
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    assert rms_error(flat(tuned), flat(end)) < 1e-3


def test_a_rank_stabilised_adapter_has_the_scale_of_peft(tmp_path: Path) -> None:
    """Stock llama.cpp multiplies by adapter.lora.alpha / rank, which must come to PEFT's alpha / sqrt(rank)."""
    model = write_model(tmp_path / "m.gguf", SHAPES["llama"], "Q8_0")
    reference = Reference(model, torch.float32)
    config = peft.LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=["q_proj"])
    layer = peft.get_peft_model(reference.model, config).get_submodule(
        "base_model.model.model.layers.0.self_attn.q_proj"
    )
    rows = ours.write_rows(tmp_path / "rows.jsonl", batches(VOCAB, 1, rows=2))
    out = tmp_path / "tuned.gguf"
    fabric_train(
        TrainSettings(data=str(rows), model=str(model), output=str(out), rank=16, alpha=8.0, rslora=True,
                      modules=("attn_q",), epochs=1, lr=2e-4, batch=8, run_dir=str(tmp_path / "run"), device="cpu"),
        SILENT,
    )  # fmt: skip
    with GGUF.open(out) as file:
        assert file.get("adapter.lora.alpha", float, 0.0) / 16 == pytest.approx(layer.scaling["default"]) == 2.0


@pytest.mark.parametrize("name", SHAPES)
def test_training_in_bf16_strays_no_further_than_peft_does(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", SHAPES[name], "Q8_0")
    pairs = random_pairs(SHAPES[name], b_std=0.1)
    truth, _ = run_peft(model, pairs)
    theirs, _ = run_peft(model, pairs, torch.bfloat16)
    losses, _ = run_ours(tmp_path, model, pairs, precision="bf16")
    assert rms_error(np.array(losses), np.array(truth)) < 1.2 * rms_error(np.array(theirs), np.array(truth))
