"""Randomness in a step, and rates of its own for B, through the real command: what must change, and what must not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fabric.weights.adapter import Adapter, read_adapter
from tests.cli.shell import fabric, one_sentence

RUN = (
    "--steps",
    "6",
    "--rank",
    "4",
    "--ctx",
    "64",
    "--batch",
    "4",
    "--lr",
    "3e-3",
    "--precision",
    "f32",
    "--threads",
    "1",
)
PLACES = (
    "-o",
    "a.gguf",
    "--run-dir",
    "run",
    "-q",
    "--steps",
    "60",
    "--ctx",
    "64",
    "--batch",
    "4",
    "--precision",
    "f32",
)
DROPOUT, NEFTUNE = ("--dropout", "0.3"), ("--neftune", "20")


def train(folder: Path, name: str, rows: Path, model: Path, *flags: str) -> tuple[list[float], Path]:
    """Losses, and what was written."""
    out, metrics = folder / f"{name}.gguf", folder / f"{name}.jsonl"
    where = ("-o", out, "--run-dir", folder / name, "--metrics", metrics)
    ended = fabric("train", rows, "-m", model, *where, *RUN, *flags)
    assert ended.code == 0, ended.err
    return [json.loads(line)["loss"] for line in metrics.read_text().splitlines()], out


def matrices(adapter: Adapter) -> dict[str, np.ndarray]:
    return {f"{name}.{part}": getattr(pair, part) for name, pair in adapter.pairs.items() for part in "ab"}


@pytest.mark.parametrize("flags", [DROPOUT, NEFTUNE, (*DROPOUT, *NEFTUNE)])
def test_noise_hangs_on_the_seed_and_on_nothing_that_lays_work_out(
    flags: tuple[str, ...], tiny: Path, rows: Path, tmp_path: Path
) -> None:
    calm, _ = train(tmp_path, "calm", rows, tiny)
    losses, whole = train(tmp_path, "whole", rows, tiny, *flags)
    assert not np.allclose(losses, calm, rtol=1e-3)
    _, again = train(tmp_path, "again", rows, tiny, *flags, "--checkpointing", "--threads", "2")
    assert again.read_bytes() == whole.read_bytes()
    laid_out, _ = train(tmp_path, "unpacked", rows, tiny, *flags, "--no-pack", "--accumulate", "2")
    np.testing.assert_allclose(laid_out, losses, rtol=1e-4)
    other, _ = train(tmp_path, "other", rows, tiny, *flags, "--seed", "7")
    assert not np.allclose(other, losses, rtol=1e-3)


def test_a_run_with_noise_resumes_to_the_same_bits(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = (*DROPOUT, *NEFTUNE, "--checkpoint-every", "2")
    _, whole = train(tmp_path, "whole", rows, tiny, *flags)
    before = whole.read_bytes()
    whole.unlink()
    (tmp_path / "whole" / "step-00000006.ckpt").unlink()
    ended = fabric("resume", tmp_path / "whole")
    assert ended.code == 0, ended.err
    assert whole.read_bytes() == before


def test_validation_knows_no_noise(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """At a rate that moves nothing, validation is that of the base, whatever is dropped or added in training."""

    def validation(name: str, *flags: str) -> float:
        train(tmp_path, name, rows, tiny, "--val", str(rows), "--lr", "1e-30", *flags)
        return float(json.loads((tmp_path / f"{name}.jsonl").read_text().splitlines()[-1])["val_loss"])

    assert validation("noisy", *DROPOUT, *NEFTUNE) == validation("calm")


def test_a_share_of_nothing_is_no_dropout(tiny: Path, rows: Path, tmp_path: Path) -> None:
    _, none = train(tmp_path, "none", rows, tiny, "--dropout", "0", "--neftune", "0", "--lora-plus", "1")
    _, plain = train(tmp_path, "plain", rows, tiny)
    assert none.read_bytes() == plain.read_bytes()


def test_rslora_is_an_alpha_that_every_reader_divides_by_the_rank(tiny: Path, rows: Path, tmp_path: Path) -> None:
    _, stabilised = train(tmp_path, "rslora", rows, tiny, "--rslora", "--alpha", "8")
    _, plain = train(tmp_path, "plain", rows, tiny, "--alpha", "16")
    one, other = read_adapter(stabilised), read_adapter(plain)
    assert one.alpha == other.alpha == 16.0
    for name, matrix in matrices(one).items():
        assert np.array_equal(matrix, matrices(other)[name])


def test_lora_plus_moves_b_so_many_times_as_far(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """The first step of AdamW is the rate times the sign of the gradient; B starts at zero, and A has none yet."""
    one = ("--steps", "1", "--schedule", "constant", "--warmup-ratio", "0")
    _, plain = train(tmp_path, "plain", rows, tiny, *one)
    _, faster = train(tmp_path, "faster", rows, tiny, *one, "--lora-plus", "5")
    for name, pair in read_adapter(plain).pairs.items():
        np.testing.assert_allclose(read_adapter(faster).pairs[name].b, 5 * pair.b, rtol=1e-4)


def test_checkpoints_come_with_time_too(tiny: Path, rows: Path, tmp_path: Path) -> None:
    seldom = ("--checkpoint-every", "100", "--keep", "99")
    train(tmp_path, "seldom", rows, tiny, *seldom)
    train(tmp_path, "often", rows, tiny, *seldom, "--checkpoint-minutes", "0.0000001")
    found = {name: len(list((tmp_path / name).glob("step-*.ckpt"))) for name in ("seldom", "often")}
    assert found == {"seldom": 1, "often": 6}


def test_a_dry_run_times_a_step_and_leaves_nothing(tiny: Path, rows: Path, tmp_path: Path) -> None:
    flags = [*RUN, *DROPOUT, *NEFTUNE, "--val", "0.2"]
    told = json.loads(fabric("train", rows, "-m", tiny, "--dry-run", "--json", *flags, cwd=tmp_path).out)
    assert told["tokens_per_s"] > 0 and told["seconds"] > 0
    longer = json.loads(
        fabric("train", rows, "-m", tiny, "--dry-run", "--json", *flags, "--steps", "6000", cwd=tmp_path).out
    )
    assert longer["seconds"] > 20 * told["seconds"]
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_ends_the_run_and_names_the_last_good_checkpoint(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    flags = ["--full", "--lr", "3", "--clip", "0", "--warmup-steps", "40", "--checkpoint-every", "1", "--keep", "99"]
    ended = fabric("train", rows, "-m", tiny, *flags, *PLACES, cwd=tmp_path)
    one_sentence(ended, 76, "the loss rose", "run/step-000000", "lower --lr")
    assert not (tmp_path / "a.gguf").exists()
    named = int(ended.err.split("step-")[1].split(".ckpt")[0])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 1 <= named < len(losses) < 60 and losses[named - 1] < losses[-1]
    again = fabric("resume", "run", "-q", cwd=tmp_path)
    one_sentence(again, 76)


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    flags = ["--clip", "0", "--checkpoint-every", "1", "--keep", "9"]
    ended = fabric("train", rows, "-m", tiny, "--lr", "2e9", *flags, *PLACES, cwd=tmp_path)
    one_sentence(ended, 76, "step 3: the loss is no longer a number", "run/step-00000001.ckpt", "lower --lr")
    assert (tmp_path / "run" / "step-00000002.ckpt").exists(), "whose parameters gave that loss"
    assert not (tmp_path / "a.gguf").exists()


def test_a_run_that_never_began_leaves_no_folder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("no json\n")
    one_sentence(fabric("train", "rows.jsonl", "-m", tiny, cwd=tmp_path), 65, "rows.jsonl:1")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_adapter_of_another_file_is_pointed_out(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    content = bytearray(tiny.read_bytes())
    content[-200] ^= 1
    (tmp_path / "other.gguf").write_bytes(content)
    known, other = (
        fabric("merge", "-m", base, "-a", adapter, "-o", tmp_path / "m.gguf")
        for base in (tiny, tmp_path / "other.gguf")
    )
    assert known.code == other.code == 0
    assert "another file" in other.err and "another file" not in known.err
    begun = fabric("train", rows, "-m", tmp_path / "other.gguf", "-a", adapter, "--run-dir", tmp_path / "r", *RUN)
    assert begun.code == 0 and f"{adapter} was trained on another file" in begun.err
