"""Gemma 4's last layers take keys and values of others: published files hold matrices that those would have, and
neither stock llama.cpp nor transformers looks at them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from fabric.weights.gguf import GGUF
from tests.cli.shell import fabric, one_sentence
from tests.parity import ours
from tests.support.edited import edited
from tests.support.random_models import write_model
from tests.support.shapes import SMALL

UNUSED = {f"blk.{i}.{part}.weight": shape
          for i, dim in ((2, 16), (3, 32))
          for part, shape in (("attn_k", (dim, 64)), ("attn_v", (dim, 64)), ("attn_k_norm", (dim,)))}  # fmt: skip


def test_what_shared_layers_do_not_use_changes_nothing_and_does_not_train(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "m.gguf", SMALL["gemma4"])
    model = edited(plain, tmp_path / "e.gguf", tensors={n: np.ones(s, np.float32) for n, s in UNUSED.items()})
    assert np.array_equal(ours.logits(model, [5, 9, 200, 7]), ours.logits(plain, [5, 9, 200, 7]))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "the quick", "completion": " brown fox"}) + "\n")
    train = ("train", "rows.jsonl", "-m", model, "--strict", "--steps", "1", "-q")
    assert fabric(*train, "-o", "a.gguf", "--run-dir", "a", cwd=tmp_path).code == 0
    with GGUF.open(tmp_path / "a.gguf") as adapter:
        names = {name.rpartition(".")[0] for name in adapter.tensors}
    assert {"blk.1.attn_k.weight", "blk.3.proj.weight", "blk.2.inp_gate.weight"} <= names and not names & {*UNUSED}
    ended = fabric(*train, "-o", "f.gguf", "--full", "--type", "f32", "--run-dir", "f", cwd=tmp_path)
    assert ended.code == 0, ended.err
    with GGUF.open(tmp_path / "f.gguf") as tuned, GGUF.open(model) as base:
        assert all(bytes(tuned.data(name)) == bytes(base.data(name)) for name in UNUSED)


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention.shared_kv_layers", 3), ("attention.shared_kv_layers", 4),
     ("attention.sliding_window_pattern", [True, False]), ("rope.dimension_count_swa", 15), ("expert_count", 4)],
)  # fmt: skip
def test_sizes_that_do_not_fit_together_are_named(key: str, value: object, tmp_path: Path) -> None:
    model = edited(
        write_model(tmp_path / "m.gguf", SMALL["gemma4"]), tmp_path / "e.gguf", keys={f"gemma4.{key}": value}
    )
    one_sentence(fabric("generate", "-m", model, "--prompt", "the", "--max-tokens", "2"), 65, key)
