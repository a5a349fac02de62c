"""Answers while a model trains: those that `generate` would give, and nothing of the training changes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric, one_sentence

RUN = ("--steps", "4", "--rank", "2", "--ctx", "64", "--batch", "4", "--lr", "0.05", "--checkpoint-every", "1")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def made(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with samples, `run`, and the same without, `plain`; what `run` said."""
    folder = tmp_path_factory.mktemp("made")
    line = ["train", rows, "-m", tiny, *RUN]
    assert fabric(*line, "--run-dir", "plain", cwd=folder).code == 0
    asked = ["--sample", rows, "--sample-every", "2"]
    told = fabric(*line, *asked, "--run-dir", "run", cwd=folder)
    assert told.code == 0, told.err
    (folder / "said").write_text(told.err)
    return folder


def test_samples_change_no_bit_of_the_training(made: Path) -> None:
    run, plain = made / "run", made / "plain"
    assert (run / "adapter.gguf").read_bytes() == (plain / "adapter.gguf").read_bytes()
    assert losses(run) == losses(plain)
    assert not (plain / "samples.jsonl").exists()


def test_samples_are_what_generate_answers_with_the_weights_of_that_step(
    made: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    samples = read(made / "run" / "samples.jsonl")
    assert [one["step"] for one in samples] == [0] * 4 + [2] * 4 + [4] * 4
    (tmp_path / "first.jsonl").write_text("".join(rows.read_text().splitlines(keepends=True)[:4]))
    for step, adapters in ((0, []), (4, ["-a", made / "run" / "adapter.gguf"])):
        told = fabric("generate", tmp_path / "first.jsonl", "-m", tiny, *adapters)
        assert told.code == 0, told.err
        answers = [json.loads(line)["answer"] for line in told.out.splitlines()]
        assert answers == [one["answer"] for one in samples if one["step"] == step]
    assert samples[0]["answer"] != samples[-4]["answer"], "nothing was learned: nothing is tested"
    assert [one["prompt"] for one in samples[:4]] == [f"Is {i} odd?" for i in range(4)]
    assert [one["expected"] for one in samples[:2]] == ["Odd: 0.", "Even: 1."]
    said = (made / "said").read_text().splitlines()
    shown = [line for line in said if " -> " in line]
    assert len(shown) == 12 and "fabric train: step 0: Is 0 odd? -> " in shown[0] and "(expected: Odd: 0.)" in shown[0]
    assert any("answers to its first 4 rows" in line for line in said)


def test_a_resumed_run_has_the_samples_of_one_that_was_never_stopped(
    made: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    line = ["train", rows, "-m", tiny, *RUN, "--sample", "-", "--sample-every", "2", "--run-dir", "piped"]
    assert fabric(*line, cwd=tmp_path, stdin=rows.read_bytes()).code == 0
    run = (tmp_path / "piped").rename(tmp_path / "moved")
    whole = (run / "samples.jsonl").read_bytes()
    assert read(run / "samples.jsonl") == read(made / "run" / "samples.jsonl")
    (run / "step-00000004.ckpt").unlink()
    assert fabric("resume", run, cwd=tmp_path).code == 0
    assert (run / "samples.jsonl").read_bytes() == whole, "from step 3"
    answers = whole.splitlines(keepends=True)
    (run / "samples.jsonl").write_bytes(b"".join(answers[:8]) + answers[8][:20])  # cut in its last answers
    again = fabric("resume", run, cwd=tmp_path)
    assert again.code == 0 and again.err.count(" -> ") == 4
    assert (run / "samples.jsonl").read_bytes() == whole, "those of the checkpoint's own step"
    for path in run.glob("*.ckpt"):
        path.unlink()
    assert fabric("resume", run, cwd=tmp_path).code == 0
    assert (run / "samples.jsonl").read_bytes() == whole, "from the start"


def test_samples_are_planned_and_taken_from_any_rows_and_whole_weights(tiny: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "The ferry leaves at noon."}\n')
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The ferry"}\n{"prompt": "At noon", "completion": " it leaves."}\n')
    line = ["train", texts, "-m", tiny, "--full", "--steps", "2", "--ctx", "64", "--lr", "1e-3"]
    plans = [json.loads(fabric(*line, *more, "--dry-run", "--json").out) for more in ([], ["--sample", prompts])]
    assert plans[1]["memory"]["samples"] > 0
    assert plans[1]["planned_bytes"] == plans[0]["planned_bytes"] + plans[1]["memory"]["samples"]
    done = fabric(*line, "--sample", prompts, "--run-dir", tmp_path / "run", "--type", "f32")
    assert done.code == 0, done.err
    samples = read(tmp_path / "run" / "samples.jsonl")
    assert [(one["step"], one["prompt"], one.get("expected")) for one in samples] == [
        (step, *one) for step in (0, 1, 2) for one in (("The ferry", None), ("At noon", " it leaves."))
    ], "before, after each epoch"
    told = fabric("generate", prompts, "-m", tmp_path / "run" / "model.gguf")
    assert [json.loads(text)["answer"] for text in told.out.splitlines()] == [one["answer"] for one in samples[4:]]
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "x " * 3000}) + "\n")
    for name, words in (("none", "no rows"), ("long", "no room for an answer"), ("gone", "cannot be read")):
        refused = fabric(*line, "--sample", tmp_path / f"{name}.jsonl", "--run-dir", tmp_path / "r")
        one_sentence(refused, 66 if name == "gone" else 65, f"{name}.jsonl", words)
    assert not (tmp_path / "r").exists()
