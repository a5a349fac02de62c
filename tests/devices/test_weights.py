"""Frozen weights as the file has them, or decoded once: the numbers are those of 16 bits, the same in every run and
after resume, and the planner decodes where that pays and fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.backends.cuda_standin import beside, build_standin
from tests.cli.shell import Ended, fabric
from tests.devices.test_profiles import with_profile
from tests.support.devices import vulkan
from tests.support.random_models import write_model
from tests.support.shapes import Shape

TRAIN = ("--steps", "4", "--rank", "4", "--ctx", "64", "--batch", "4", "--checkpoint-every", "2", "--json")
PRODUCTS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64) + 320 * 64  # elements of the matrices that multiply


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Q8_0, with an output of its own."""
    return write_model(tmp_path_factory.mktemp("blocks") / "m.gguf", Shape(tied=False), "Q8_0")


def train(folder: Path, model: Path, rows: Path, device: str, weights: str, name: str) -> list[float]:
    done = fabric(
        "train", rows, "-m", model, "--device", device, "--weights", weights, "--run-dir", name, "-o", f"{name}.gguf",
        "--metrics", f"{name}.jsonl", *TRAIN, cwd=folder, timeout=300,
    )  # fmt: skip
    assert done.code == 0, done.err
    return [json.loads(line)["loss"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("backend", ["cpu", "vulkan"])
def test_decoded_weights_give_the_losses_of_16_bits_in_every_run(
    backend: str, blocks: Path, rows: Path, tmp_path: Path
) -> None:
    device = vulkan() if backend == "vulkan" else backend
    kinds = {"auto": "auto", "blocks": "blocks", "once": "16bit", "again": "16bit"}
    losses = {name: train(tmp_path, blocks, rows, device, kind, name) for name, kind in kinds.items()}
    files = {name: (tmp_path / f"{name}.gguf").read_bytes() for name in kinds}
    assert files["auto"] == files["blocks"], "a processor decodes as it multiplies"
    assert files["once"] == files["again"] != files["blocks"]
    assert losses["once"] == losses["again"] == pytest.approx(losses["blocks"], rel=5e-3)
    for newer in (tmp_path / "once").glob("step-*4.ckpt"):
        newer.unlink()
    (tmp_path / "once.gguf").unlink()
    assert fabric("resume", "once", cwd=tmp_path, timeout=300).code == 0
    assert (tmp_path / "once.gguf").read_bytes() == files["again"]
    told = json.loads(fabric("inspect", "once.gguf", "--json", cwd=tmp_path).out)
    assert '"weights": "16bit"' in json.dumps(told)


def test_what_it_takes_is_told(blocks: Path, rows: Path, tmp_path: Path) -> None:
    plan = ("train", rows, "-m", blocks, "--dry-run", *TRAIN)
    told = [json.loads(fabric(*plan, "--weights", kind, cwd=tmp_path).out) for kind in ("blocks", "16bit")]
    assert [values["weights"] for values in told] == ["blocks", "16bit"]
    assert [values["memory"]["decoded_weights"] for values in told] == [0, 2 * PRODUCTS]
    assert told[1]["planned_bytes"] == sum(told[1]["memory"].values())
    text = fabric(*plan[:-1], "--weights", "16bit", cwd=tmp_path).out.decode()
    assert "decoded to 16 bits" in text and "decoded weights" in text


def planned(model: Path, env: dict[str, str], *flags: str) -> dict[str, Any]:
    line = ("devices", "--plan", "-m", model, "--device", "cuda", "--json", *flags)
    done: Ended = fabric(*line, env={"STANDIN_ARCH": "90", **env})
    assert done.code == 0, done.err
    values: dict[str, Any] = json.loads(done.out)
    return values


def test_the_planner_decodes_where_it_pays_and_fits(blocks: Path, tmp_path: Path) -> None:
    card = beside(build_standin(tmp_path), STANDIN_MEMORY=str(1 << 30))
    kept = planned(blocks, card, "--weights", "blocks")
    decoded = planned(blocks, card)
    assert (kept["weights"], kept["decoded_bytes"]) == ("blocks", 0)
    assert (decoded["weights"], decoded["decoded_bytes"]) == ("16bit", 2 * PRODUCTS)
    assert kept["uploaded_bytes"] - decoded["uploaded_bytes"] == PRODUCTS * 34 // 32, "the file's blocks are not kept"
    assert planned(blocks, card, "--precision", "f32")["weights"] == "blocks"
    assert planned(blocks, {**card, "STANDIN_ARCH": "75"})["weights"] == "blocks", "without matrix units of 16 bits"
    needs = decoded["planned_bytes"] + decoded["uploaded_bytes"]
    tight = {**card, "STANDIN_MEMORY": str(needs * 4 // 3 - 4)}
    assert planned(blocks, tight)["weights"] == "blocks"
    assert planned(blocks, tight, "--weights", "16bit")["weights"] == "16bit"
    forced = {**card, **with_profile(tmp_path, '[run]\nweights = "blocks"\n')}
    assert planned(blocks, forced)["weights"] == "blocks"
    assert planned(blocks, forced, "--weights", "16bit")["weights"] == "16bit"
    line = ("devices", "--plan", "-m", blocks, "--device", "cuda")
    assert "decoded to 16 bits, " in fabric(*line, env={**card, "STANDIN_ARCH": "90"}).out.decode()
