"""LongRoPE: contexts up to the original one have the short factors, longer ones the long factors, in every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from tests.cli.shell import fabric, one_sentence
from tests.support.edited import edited
from tests.support.random_models import write_model
from tests.support.shapes import SMALL, LongRope

ORIGINAL = 40
BOTH = LongRope(original_context=ORIGINAL)
ONLY = {
    "short": replace(BOTH, long=BOTH.short),
    "long": replace(BOTH, short=BOTH.long),
}  # a model with one set of factors only


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    shapes = {name: replace(SMALL["phi3"], rope_scaling=scaling) for name, scaling in {"both": BOTH, **ONLY}.items()}
    return {name: write_model(folder / f"{name}.gguf", shape) for name, shape in shapes.items()}


def loss(folder: Path, command: str, model: Path, ctx: int) -> float:
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"text": "the old man and his cat thank the dog"}) + "\n")
    more = ("--steps", "1", "-o", folder / "a.gguf", "--run-dir", folder / f"{model.stem}{ctx}")
    ended = fabric(command, rows, "-m", model, "--ctx", ctx, "--json", *(more if command == "train" else ()))
    assert ended.code == 0, ended.err
    return float(json.loads(ended.out.splitlines()[-1])["loss"])


@pytest.mark.parametrize("command", ["eval", "train"])
def test_the_context_chooses_the_factors(command: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Not the length of a row, so that packing and a cache change nothing."""
    losses = {name: loss(tmp_path, command, model, ORIGINAL) for name, model in models.items()}
    assert losses["both"] == losses["short"] != losses["long"]
    assert loss(tmp_path, command, models["both"], ORIGINAL + 1) == losses["long"]


def test_generate_chooses_as_training_does(models: dict[str, Path]) -> None:
    def answer(name: str, ctx: int) -> str:
        ended = fabric(
            *("generate", "-m", models[name], "--prompt", "the old man and", "--max-tokens", "12", "--ctx", ctx),
            *("--temperature", "0", "--json"),
        )
        assert ended.code == 0, ended.err
        return str(json.loads(ended.out)["answer"])

    assert answer("both", ORIGINAL) == answer("short", ORIGINAL)
    assert answer("both", ORIGINAL + 1) == answer("long", ORIGINAL) != answer("short", ORIGINAL)


def test_a_file_with_one_of_the_two_sets_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    cut = edited(models["both"], tmp_path / "m.gguf", {}, {"rope_factors_long.weight": None})
    one_sentence(fabric("generate", "-m", cut, "--prompt", "x"), 65, "rope_factors_long.weight")
