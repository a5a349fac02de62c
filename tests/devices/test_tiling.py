"""`fabric devices --plan`: what would be cut, and because of which limit, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import fabric, one_sentence
from tests.devices.test_profiles import with_profile
from tests.support.devices import vulkan
from tests.support.paths import gemma3
from tests.support.random_models import write_model
from tests.support.shapes import Shape


def planned(model: Path, *flags: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = fabric("devices", "--plan", "-m", model, "--json", *flags, env=env)
    assert done.code == 0, done.err
    values: dict[str, Any] = json.loads(done.out)
    return values


@pytest.mark.parametrize("which", ["binding", "allocation"])
def test_what_is_cut_is_told_with_the_limit(which: str, tiny: Path, rows: Path, tmp_path: Path) -> None:
    env = with_profile(tmp_path, f"[limits]\nmax_{which}_bytes = 65536\n")
    values = planned(tiny, "--ctx", "64", env=env)
    embedding = [row for row in values["tiles"] if row["tensor"] == "token_embd.weight"]
    assert {row["op"] for row in embedding} == {"embed", "linear", "linear_dx"}
    for row in values["tiles"]:
        assert (row["limit"], row["most"]) == (which, 65536)
        assert row["bytes"] > 65536 and row["launches"] > row["ops"] > 0
    dry = fabric("train", rows, "-m", tiny, "--ctx", "64", "--no-pack", "--dry-run", "--json", env=env)
    assert dry.code == 0, dry.err
    same = planned(tiny, "--ctx", str(json.loads(dry.out)["micro_batch_tokens"]), env=env)
    assert sum(row["launches"] for row in same["tiles"]) == json.loads(dry.out)["tiled"]
    whole = planned(tiny, "--ctx", "64", "--full", env=env)
    assert "gradient of token_embd.weight" in {row["tensor"] for row in whole["tiles"]}
    text = fabric("devices", "--plan", "-m", tiny, "--ctx", "64", env=env).out.decode()
    assert f"{which} 64.0 KiB" in text and "launches are tiles" in text


def test_a_long_sum_is_cut_where_a_profile_says_so(tmp_path: Path) -> None:
    model = write_model(tmp_path / "wide.gguf", Shape(vocab=3000))
    values = planned(model, env=with_profile(tmp_path, "[limits]\nmax_reduction = 1024\n"))
    assert [(row["op"], row["tensor"], row["limit"], row["most"], row["launches"]) for row in values["tiles"]] == [
        ("linear_dx", "token_embd.weight", "reduction", 1024, 3)
    ]


def test_where_all_fits_nothing_is_tiled(tiny: Path) -> None:
    assert planned(tiny)["tiles"] == []
    assert "nothing is tiled" in fabric("devices", "--plan", "-m", tiny).out.decode()


def test_a_real_embedding_is_past_what_lavapipe_binds() -> None:
    vulkan()
    values = planned(gemma3(), "--device", "vulkan", "--ctx", "64")
    if values["profile"] == "lavapipe":
        assert {row["tensor"] for row in values["tiles"]} == {"token_embd.weight"}
        assert {row["limit"] for row in values["tiles"]} == {"binding", "reduction"}


def test_flags_that_do_not_belong_together_are_refused(tiny: Path) -> None:
    one_sentence(fabric("devices", "--plan"), 2, "--plan", "-m")
    one_sentence(fabric("devices", "-m", tiny, "--ctx", "64"), 2, "--model and --ctx", "--plan")
