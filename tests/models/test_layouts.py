"""What lays work out changes no result, in architectures whose graphs have what llama's does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from tests.cli.shell import fabric
from tests.parity.ours import gradients
from tests.parity.rows import batches
from tests.support.compare import flat, relative_error
from tests.support.devices import vulkan
from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import SMALL

ARCHITECTURES = ["phi3", "mistral3", "bitnet", "lfm2", "gemma4", "qwen35", "qwen3moe"]
RUN = (
    "--steps", "3", "--batch", "4", "--rank", "3", "--ctx", "48", "--lr", "1e-2", "--precision", "f32",
    "--modules", "all",
)  # fmt: skip


def losses(folder: Path, model: Path, name: str, *flags: str) -> np.ndarray:
    """Losses and gradient norms of a run that writes NAME.gguf."""
    ended = fabric(
        *("train", "rows.jsonl", "-m", model, "-o", f"{name}.gguf", "--run-dir", name, "--metrics", f"{name}.jsonl"),
        *RUN, *flags, cwd=folder, timeout=300,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    steps = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return np.array([(step["loss"], step["grad_norm"]) for step in steps])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packing_checkpointing_and_resuming_change_no_result(name: str, tmp_path: Path) -> None:
    rows = ((f"the quick brown fox number {i}", f" jumps {i + 1} times" * (i % 3 + 1)) for i in range(12))
    lines = (json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows)
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    model = write_model(tmp_path / "m.gguf", SMALL[name], "Q8_0")
    plain = losses(tmp_path, model, "plain", "--checkpointing", "--checkpoint-every", "1")
    assert plain[-1, 0] < plain[0, 0]
    written = (tmp_path / "plain.gguf").read_bytes()
    losses(tmp_path, model, "kept", "--no-checkpointing")
    assert (tmp_path / "kept.gguf").read_bytes() == written
    (tmp_path / "plain.gguf").unlink()
    next((tmp_path / "plain").glob("step-*3.ckpt")).unlink()
    resumed = fabric("resume", "plain", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "plain.gguf").read_bytes() == written
    np.testing.assert_allclose(losses(tmp_path, model, "alone", "--no-pack"), plain, rtol=1e-5)


@pytest.mark.parametrize("device", ["tiles", "vulkan"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tiles_and_vulkan_compute_the_same(name: str, device: str, tmp_path: Path) -> None:
    """Pairs of rank 3, so that rows of a matrix begin at no aligned byte."""
    model = write_model(tmp_path / "m.gguf", SMALL[name])
    pairs, rows = random_pairs(SMALL[name], rank=3, b_std=0.1), batches(SMALL[name].vocab, steps=1, longest=20)[0]
    options = {"name": vulkan()} if device == "vulkan" else {"max_binding_bytes": 24000}
    want, got = gradients(model, pairs, 8.0, rows), gradients(model, pairs, 8.0, rows, **options)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    assert relative_error(flat(got[1]), flat(want[1])) < 1e-5
