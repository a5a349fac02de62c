"""If these fail, `train --full` follows another gradient than PyTorch does, or writes another model than it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch, transformers and peft")
pytest.importorskip("transformers", reason="parity needs torch, transformers and peft")
pytest.importorskip("peft", reason="parity needs torch, transformers and peft")

from fabric.training.run import train as fabric_train  # noqa: E402
from fabric.training.settings import SILENT, TrainSettings  # noqa: E402
from fabric.weights.gguf import GGUF, decode_tensor  # noqa: E402
from tests.parity import ours  # noqa: E402
from tests.parity.reference import Recipe, Reference, train  # noqa: E402
from tests.parity.rows import Row, batches  # noqa: E402
from tests.support.compare import relative_error, rms_error  # noqa: E402
from tests.support.random_models import write_model  # noqa: E402
from tests.support.shapes import SMALL, RopeScaling, Shape  # noqa: E402

SHAPES = {
    **SMALL,
    "tied": Shape(layers=3, rope_scaling=RopeScaling()),
    "untied": Shape(tied=False),
    "odd_sizes": Shape(hidden=96, layers=3, heads=6, kv_heads=3, head_dim=16, ffn=160, vocab=389),
}
STEPS, LR, DECAY = 20, 2e-3, 0.1


def all_error(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """Of all matrices together, so that the clipped step is what counts."""
    assert got.keys() == want.keys()
    return rms_error(*(np.concatenate([m[name].ravel() for name in sorted(want)]) for m in (got, want)))


def measure(path: Path, rows: list[Row], dtype: torch.dtype) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """PyTorch's weights and their gradients."""
    reference = Reference(path, dtype)
    reference.train_whole()
    start = reference.weights()
    reference.backward(rows)
    return start, reference.weight_gradients()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_gradients_of_all_weights_agree_with_pytorch(name: str, kind: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    model = write_model(tmp_path / "m.gguf", shape, kind)
    rows = batches(shape.vocab, steps=1)[0]
    start, want = measure(model, rows, torch.float64)
    with GGUF.open(model) as base:
        fixed = ("rope_", "layer_output_scale.", ".ssm_a|")
        assert want.keys() == {name for name in base.tensors if not any(part in f"{name}|" for part in fixed)}
    _, got = ours.gradients_of(model, start, rows)
    for tensor, truth in want.items():
        assert relative_error(got[tensor], truth) < 1e-4, tensor


def test_gradients_of_all_weights_in_bf16_are_as_close_to_the_truth_as_pytorch(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", SHAPES["tied"], "Q8_0")
    rows = batches(SHAPES["tied"].vocab, steps=1)[0]
    start, truth = measure(model, rows, torch.float64)
    _, theirs = measure(model, rows, torch.bfloat16)
    _, got = ours.gradients_of(model, start, rows, "bf16")
    assert all_error(got, truth) < 1.2 * all_error(theirs, truth)


def run_ours(folder: Path, model: Path, shape: Shape, **settings: Any) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and final weights of a run over the same batches."""
    chosen = TrainSettings(
        data=str(ours.write_rows(folder / "rows.jsonl", batches(shape.vocab, STEPS, rows=4))),
        model=str(model),
        output=str(folder / "tuned.gguf"),
        full=True,
        type="f32",
        run_dir=str(folder / "run"),
        metrics=str(folder / "metrics.jsonl"),
        **{
            "epochs": 1,
            "batch": 4,
            "ctx": 512,
            "lr": LR,
            "weight_decay": DECAY,
            "shuffle": False,
            "precision": "f32",
            "threads": 2,
            "device": "cpu",
            **settings,
        },
    )
    fabric_train(chosen, SILENT)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with GGUF.open(folder / "tuned.gguf") as tuned:
        return losses, {name: decode_tensor(tuned, name) for name in tuned.tensors if name != "rope_freqs.weight"}


def run_theirs(model: Path, shape: Shape, dtype: torch.dtype) -> tuple[list[float], dict[str, np.ndarray]]:
    reference = Reference(model, dtype)
    reference.train_whole()
    steps = list(train(reference, batches(shape.vocab, STEPS, rows=4), Recipe(STEPS, lr=LR, weight_decay=DECAY)))
    return [step.loss for step in steps], reference.weights()


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_twenty_steps_on_whole_weights_follow_pytorch(name: str, tmp_path: Path) -> None:
    """Weight decay is high enough that norms which wrongly decay would show."""
    model = write_model(tmp_path / "m.gguf", SHAPES[name], "Q8_0")
    want, end = run_theirs(model, SHAPES[name], torch.float64)
    losses, tuned = run_ours(tmp_path, model, SHAPES[name], pack=name == "tied")
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, want, rtol=1e-4)
    for tensor, truth in end.items():
        assert rms_error(tuned[tensor], truth) < 1e-4, tensor


def test_training_whole_weights_in_bf16_strays_no_further_than_pytorch_does(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", SHAPES["tied"], "Q8_0")
    truth, _ = run_theirs(model, SHAPES["tied"], torch.float64)
    theirs, _ = run_theirs(model, SHAPES["tied"], torch.bfloat16)
    losses, _ = run_ours(tmp_path, model, SHAPES["tied"], precision="bf16")
    assert rms_error(np.array(losses), np.array(truth)) < 1.2 * rms_error(np.array(theirs), np.array(truth))
