"""Full fine-tuning through the real command: what `train --full` writes, tells and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest

from fabric.weights.gguf import GGUF, TensorSpec, write_gguf
from tests.cli.shell import fabric, one_sentence, shell

QUICK = ("--full", "--threads", "1", "--steps", "4", "--ctx", "64", "--batch", "4", "--lr", "3e-3")


@pytest.fixture(scope="module")
def quantized(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Q4_0."""
    path = tmp_path_factory.mktemp("base") / "q4.gguf"
    assert fabric("quantize", tiny, "--type", "q4_0", "-o", path).code == 0
    return path


def types_of(path: Path) -> dict[str, str]:
    with GGUF.open(path) as gguf:
        return {name: info.type_name for name, info in gguf.tensors.items()}


def loss(rows: Path, model: Path) -> float:
    return float(json.loads(fabric("eval", rows, "-m", model, "--json").out)["loss"])


def test_the_model_written_is_the_base_that_has_learned(quantized: Path, rows: Path, tmp_path: Path) -> None:
    out, metrics = tmp_path / "tuned.gguf", tmp_path / "m.jsonl"
    told = fabric(
        *("train", rows, "-m", quantized, "-o", out, "--run-dir", tmp_path / "run", *QUICK),
        *("--val", rows, "--metrics", metrics, "--json"),
    )
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert report["kind"] == "model" and report["output_bytes"] == out.stat().st_size
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert loss(rows, out) == pytest.approx(last["val_loss"], rel=0.02)  # BF16 rounding lies between the two
    assert loss(rows, out) < loss(rows, quantized) - 0.5
    with GGUF.open(quantized) as base, GGUF.open(out) as tuned:
        ours = {"fabric.history", "general.file_type"}
        assert {k: v for k, v in base.metadata.items() if k not in ours} == {
            k: v for k, v in tuned.metadata.items() if k not in ours
        }
        steps = [json.loads(line) for line in tuned.metadata["fabric.history"]]
    assert [s["command"] for s in steps] == ["quantize", "train"]
    assert steps[1]["settings"]["full"] and not {"rank", "alpha", "modules"} & steps[1]["settings"].keys()
    answered = fabric("generate", "-m", out, "--prompt", "Is 3 odd?", "--max-tokens", "3")
    assert answered.code == 0, answered.err
    assert not (tmp_path / "run" / "model.gguf").exists()


def test_every_tensor_has_the_type_that_was_asked_for(tiny: Path, quantized: Path, rows: Path, tmp_path: Path) -> None:
    def types(base: Path, number: int, *more: str) -> set[str]:
        out = tmp_path / f"{number}.gguf"
        told = fabric("train", rows, "-m", base, "-o", out, *QUICK, "--run-dir", tmp_path / f"run{number}", *more)
        assert told.code == 0, told.err
        found = types_of(out)
        assert all(found[name] == "F32" for name in found if "norm" in name)
        return {type for name, type in found.items() if "norm" not in name}

    assert types(tiny, 0) == {"F32"}
    assert types(quantized, 1) == {"BF16"}
    assert types(quantized, 2, "--type", "keep") == {"Q4_0", "Q8_0"}
    with GGUF.open(quantized) as base, GGUF.open(tmp_path / "2.gguf") as kept:
        assert kept.metadata["general.file_type"] == base.metadata["general.file_type"]
    assert types(quantized, 3, "--type", "Q8_0") == {"Q8_0"}


def test_a_piped_model_is_the_one_in_a_file(quantized: Path, rows: Path, tmp_path: Path) -> None:
    train = f"fabric train {rows} -m {quantized} {' '.join(QUICK)}"
    piped = shell(f"{train} --run-dir a -o - | fabric quantize --type q8_0 -o piped.gguf", tmp_path)
    assert piped.code == 0, piped.err
    filed = shell(f"{train} --run-dir b && fabric quantize b/model.gguf --type q8_0 -o filed.gguf", tmp_path)
    assert filed.code == 0, filed.err
    assert (tmp_path / "piped.gguf").read_bytes() == (tmp_path / "filed.gguf").read_bytes()


def test_flags_of_lora_pairs_are_refused_beside_full(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    train = ["train", rows, "-m", tiny, "-o", tmp_path / "out", "--full"]
    for flag, value in (("--rank", "8"), ("--alpha", "4"), ("--modules", "attn"), ("--adapter", str(adapter))):
        one_sentence(fabric(*train, flag, value, cwd=tmp_path), 2, "--full", flag)
    one_sentence(fabric(*train[:-1], "--type", "q8_0", cwd=tmp_path), 2, "--type", "--full")
    one_sentence(fabric(*train, "--type", "q9_9", cwd=tmp_path), 2, "q9_9")
    assert list(tmp_path.iterdir()) == []


def test_a_configured_rank_does_not_stand_in_the_way_of_full(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "fabric.toml").write_text('type = "q8_0"\n[train]\nrank = 4\n')
    told = fabric("train", rows, "-m", tiny, "-o", "out.gguf", *QUICK, cwd=tmp_path)
    assert told.code == 0, told.err
    assert "Q8_0" in types_of(tmp_path / "out.gguf").values()
    lora = fabric("train", rows, "-m", tiny, "-o", "a.gguf", *QUICK[1:], cwd=tmp_path)
    assert lora.code == 0, lora.err


def test_a_dry_run_tells_the_memory_of_every_part(tiny: Path, rows: Path, tmp_path: Path) -> None:
    told = fabric("train", rows, "-m", tiny, *QUICK, "--dry-run", "--json", cwd=tmp_path)
    plan = json.loads(told.out)
    memory = plan["memory"]
    assert memory["trained_weights"] >= 4 * plan["trained_params"]
    assert memory["gradients"] == memory["trained_weights"]
    assert memory["optimizer_state"] == 2 * memory["trained_weights"]
    assert sum(memory.values()) == plan["planned_bytes"]
    sgd = fabric("train", rows, "-m", tiny, *QUICK, "--dry-run", "--json", "--optimizer", "sgd", cwd=tmp_path)
    assert json.loads(sgd.out)["memory"]["optimizer_state"] == 0
    assert list(tmp_path.iterdir()) == []


class Sparse:
    """A file in which large pieces are holes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes | memoryview) -> None:
        if len(data) < 1 << 20:
            self.file.write(data)
        else:
            self.file.seek(len(data), 1)


def test_a_model_that_cannot_fit_is_refused_before_anything_is_allocated(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Half a terabyte of weights and optimizer state, in a file that is one large hole."""
    huge, vocab, width = tmp_path / "huge.gguf", 1 << 22, 8192
    with GGUF.open(tiny) as base, huge.open("wb") as file:
        metadata = dict(base.raw_metadata)
        for key, value in (("embedding_length", width), ("block_count", 1), ("vocab_size", vocab)):
            metadata[f"llama.{key}"] = value  # type: ignore[assignment]
        metadata["llama.attention.head_count"] = metadata["llama.attention.head_count_kv"] = 4  # type: ignore[assignment]
        shapes = {"token_embd": (vocab, width), "output_norm": (width,), "attn_norm": (width,), "ffn_norm": (width,)}
        shapes |= dict.fromkeys(("attn_q", "attn_k", "attn_v"), (64, width)) | {"attn_output": (width, 64)}
        shapes |= {"ffn_gate": (96, width), "ffn_up": (96, width), "ffn_down": (width, 96)}
        specs = [
            TensorSpec(
                f"{'' if module in ('token_embd', 'output_norm') else 'blk.0.'}{module}.weight",
                2 if module == "token_embd" else 0,
                shape,
            )
            for module, shape in shapes.items()
        ]
        piece = np.zeros(1 << 26, np.uint8).data
        pieces = (piece[: min(len(piece), s.nbytes - at)] for s in specs for at in range(0, s.nbytes, len(piece)))
        write_gguf(cast(BinaryIO, Sparse(file)), metadata, specs, pieces)
        file.truncate()
    for more in (["--dry-run"], ["-o", tmp_path / "out", "--run-dir", tmp_path / "run"]):
        ended = fabric("train", rows, "-m", huge, *QUICK, *more, cwd=tmp_path)
        one_sentence(ended, 69, "GiB", "--full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["huge.gguf"]
