"""How a run is paced and when it ends, through the real command: rates, windows, checkpoints that stay, patience."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fabric.weights.adapter import read_adapter
from tests.cli.shell import fabric, one_sentence

FLAT = ("--schedule", "constant", "--warmup-ratio", "0", "--rank", "4", "--ctx", "64", "--precision", "f32")


def train(folder: Path, name: str, rows: Path, model: Path, *flags: str) -> list[dict[str, float]]:
    """The metrics of a run that writes NAME.gguf into the folder."""
    out, metrics = folder / f"{name}.gguf", folder / f"{name}.jsonl"
    told = fabric(
        *(
            "train",
            rows,
            "-m",
            model,
            "-o",
            out,
            "--run-dir",
            folder / name,
            "--metrics",
            metrics,
            "--json",
            "--threads",
            "1",
            *flags,
        )
    )
    assert told.code == 0, told.err
    (folder / f"{name}.json").write_bytes(told.out)
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def chats(path: Path, answers: str) -> Path:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": answer * 3}]})
        for i, answer in enumerate(answers)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_patience_ends_a_run_that_overfits_and_writes_its_best_step(tiny: Path, tmp_path: Path) -> None:
    rows, held_out = chats(tmp_path / "rows.jsonl", "abababab"), chats(tmp_path / "val.jsonl", "acacacac")
    flags = [*FLAT, "--lr", "0.03", "--val", str(held_out), "--eval-every", "1"]
    losses = [m["val_loss"] for m in train(tmp_path, "stopped", rows, tiny, *flags, "--steps", "60", "--patience", "3")]
    report = json.loads((tmp_path / "stopped.json").read_text())
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + 3 < 60
    assert report["best_step"] == best and report["val_loss"] == losses[best - 1]
    train(tmp_path, "as_long", rows, tiny, *flags, "--steps", str(best))
    got, want = (read_adapter(tmp_path / f"{name}.gguf").pairs for name in ("stopped", "as_long"))
    for name, pair in want.items():
        assert np.array_equal(got[name].a, pair.a) and np.array_equal(got[name].b, pair.b)
    again = fabric("resume", tmp_path / "stopped", "-o", tmp_path / "again.gguf")
    assert again.code == 0, again.err
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "stopped.gguf").read_bytes()


def test_the_rate_warms_up_falls_and_ends_where_it_was_told(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = ["--steps", "8", "--lr", "1e-3", "--lr-min", "1e-5", "--warmup-steps", "4", "--rank", "2", "--ctx", "64"]
    rates = {
        schedule: [m["lr"] for m in train(tmp_path, schedule, rows, tiny, *flags, "--schedule", schedule)]
        for schedule in ("linear", "cosine", "exponential")
    }
    for found in rates.values():
        np.testing.assert_allclose(found[:5], [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
        assert found[4:] == sorted(found[4:], reverse=True) and found[-1] > 1e-5
    np.testing.assert_allclose(rates["exponential"][4:], [1e-3 * 0.01 ** (i / 4) for i in range(4)])
    np.testing.assert_allclose(rates["linear"][4:], [1e-5 + 9.9e-4 * (1 - i / 4) for i in range(4)])


def test_as_many_checkpoints_stay_as_were_asked_for(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = ["--steps", "6", "--rank", "2", "--ctx", "64", "--checkpoint-every", "1", "--keep", "4"]
    train(tmp_path, "run", rows, tiny, *flags)
    kept = sorted(path.name for path in (tmp_path / "run").glob("*.ckpt"))
    assert kept == [f"step-{i:08d}.ckpt" for i in (3, 4, 5, 6)]


def test_windows_of_a_long_text_overlap_by_the_stride(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the quick brown fox jumps over the lazy dog. " * 20}))

    def plan(*flags: str) -> dict[str, int]:
        told = fabric("train", tmp_path / "text.jsonl", "-m", tiny, "--ctx", "64", "--dry-run", "--json", *flags)
        assert told.code == 0, told.err
        return dict(json.loads(told.out))

    once, twice = plan(), plan("--stride", "32")
    assert 1.7 * once["tokens"] < twice["tokens"] < 2.1 * once["tokens"]
    assert once["rows"] < twice["rows"]


def test_sgd_trains_without_moments(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = ["--steps", "12", "--lr", "1", "--optimizer", "sgd", "--batch", "12"]
    losses = [m["loss"] for m in train(tmp_path, "run", rows, tiny, *FLAT, *flags)]
    assert losses[-1] < losses[0] - 0.1
    parameters = sum(pair.a.size + pair.b.size for pair in read_adapter(tmp_path / "run.gguf").pairs.values())
    assert (tmp_path / "run" / "step-00000012.ckpt").stat().st_size < 4 * parameters * 1.5 + 1000


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--patience", "2"], "--val"),
        (["--lr", "1e-4", "--lr-min", "1e-3"], "--lr-min"),
        (["--ctx", "512", "--stride", "512"], "--stride"),
        (["--keep", "0"], "keep"),
        (["--warmup-steps", "-1"], "warmup-steps"),
    ],
)
def test_paces_that_make_no_sense_are_refused(flags: list[str], word: str, tiny: Path, rows: Path) -> None:
    one_sentence(fabric("train", rows, "-m", tiny, *flags), 2, word)
