"""Sizes that a file chooses, and numbers of devices: computed with, however odd, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from tests.cli.shell import Ended, fabric, one_sentence
from tests.support.altered import altered
from tests.support.random_models import write_model
from tests.support.shapes import Shape

TINY = Shape(hidden=32, layers=1, heads=1, kv_heads=1, head_dim=32, ffn=32, context=4096)


def commands(model: Path, rows: Path, folder: Path, *names: str) -> dict[str, Ended]:
    """How each command ends on a model."""
    lines = {
        "train": ["train", rows, "-m", model, "-o", folder / "a.gguf", "--run-dir", folder / "run", "--steps", "1"],
        "eval": ["eval", rows, "-m", model],
        "generate": ["generate", "-m", model, "--prompt", "hello", "--max-tokens", "4"],
        "bench": ["bench", "-m", model, "--steps", "1"],
    }
    return {name: fabric(*lines[name], *(["--ctx", "64"] if name != "generate" else [])) for name in names or lines}


def test_heads_of_2048_train_and_generate(rows: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", replace(TINY, head_dim=2048))
    for name, ended in commands(model, rows, tmp_path, "train", "eval", "generate").items():
        assert ended.code == 0, (name, ended.err)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"attention.head_count": 33_554_464, "attention.head_count_kv": 32,
             "attention.key_length": 128, "attention.value_length": 128},
            "attn_q.weight is 32 x 32, not 4294971392 x 32",
        ),
        ({"attention.head_count": (1 << 31) - 1}, "attn_q.weight"),
        ({"attention.key_length": 1 << 16, "attention.value_length": 1 << 16}, "attn_q.weight"),
        ({"embedding_length": 1 << 30}, "token_embd.weight is 320 x 32, not 320 x 1073741824"),
        ({"feed_forward_length": (1 << 31) - 1}, "ffn_gate.weight is 32 x 32, not 2147483647 x 32"),
    ],
)  # fmt: skip
def test_keys_that_ask_for_other_tensors_are_refused(
    keys: dict[str, int], said: str, rows: Path, tmp_path: Path
) -> None:
    model = altered(
        write_model(tmp_path / "m.gguf", TINY), tmp_path / "odd.gguf", {f"llama.{k}": v for k, v in keys.items()}
    )
    for ended in commands(model, rows, tmp_path, "eval").values():
        one_sentence(ended, 65, "odd.gguf", said)


@pytest.mark.parametrize(("rows_of_head", "names"), [(100, ["generate"]), (350, []), (200_000, ["generate"])])
def test_a_head_of_another_vocabulary_is_refused_by_name(
    rows_of_head: int, names: list[str], rows: Path, tmp_path: Path
) -> None:
    head = np.ones((rows_of_head, 32), np.float32)
    model = altered(write_model(tmp_path / "m.gguf", TINY), tmp_path / "odd.gguf", tensors={"output.weight": head})
    for ended in commands(model, rows, tmp_path, *names).values():
        one_sentence(ended, 65, f"output.weight is {rows_of_head} x 32, not 320 x 32 as token_embd.weight has it")


def test_a_nearly_full_context_needs_no_more_scratch_than_a_full_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", replace(TINY, ffn=768))
    texts = tmp_path / "texts.jsonl"
    lines = [{"tokens": [5 + i % 9 for i in range(n)], "train": [1] * n} for n in (1536, 1520, 1535)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for flags in (["--full"], ["--full", "--precision", "f32", "--lr", "1e-5"]):
        ended = fabric(
            "train", texts, "-m", model, "-o", tmp_path / "out.gguf", "--run-dir", tmp_path / f"run{len(flags)}",
            "--ctx", "1536", "--batch", "1", "--steps", "3", *flags,
        )  # fmt: skip
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("device", ["vulkan:abc", "cpu:3"])
def test_a_number_that_no_device_has_is_refused(device: str, rows: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.gguf", TINY)
    ended = fabric("eval", rows, "-m", model, "--device", device)
    one_sentence(ended, 69, f"there is no device '{device}' here")
