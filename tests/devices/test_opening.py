"""What a user loses if --device auto fails: the quickest device that fits is taken, and the first line says which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.devices.opening import candidates
from tests.backends.shim import behind
from tests.cli.shell import Ended, fabric
from tests.support.devices import vulkan

AUTO = {"FABRIC_DEVICE": "auto"}
TRAIN = ("--steps", "1", "--rank", "2", "--ctx", "64", "--batch", "2", "--run-dir", "run")


def train(folder: Path, tiny: Path, rows: Path, env: dict[str, str], *flags: str) -> Ended:
    folder.mkdir(exist_ok=True)
    return fabric("train", rows, "-m", tiny, *TRAIN, *flags, cwd=folder, env={**AUTO, **env}, timeout=300)


def test_a_software_driver_is_never_taken() -> None:
    assert vulkan() == "vulkan"
    assert [name for name, info in candidates() if info.software] == []
    assert candidates()[-1][0] == "cpu"


def test_every_command_takes_the_processor_where_there_is_nothing_else_and_says_so(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    if len(candidates()) > 1:
        pytest.skip("there is an accelerator here")
    trained = train(tmp_path, tiny, rows, {})
    assert trained.code == 0 and trained.err.splitlines()[0].startswith("fabric train: on cpu, "), trained.err
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["device"] == "cpu"
    fixed = train(tmp_path / "fixed", tiny, rows, {"FABRIC_DEVICE": "cpu"})
    assert "on cpu" not in fixed.err
    assert (tmp_path / "run/adapter.gguf").read_bytes() == (tmp_path / "fixed/run/adapter.gguf").read_bytes()
    for line in (
        ("eval", rows, "-m", tiny),
        ("generate", "-m", tiny, "--prompt", "x", "--max-tokens", "2"),
        ("bench", "-m", tiny, "--ctx", "16", "--steps", "1"),
    ):
        ended = fabric(*line, env=AUTO)
        assert ended.code == 0 and ended.err.splitlines()[0].startswith(f"fabric {line[0]}: on cpu, "), ended.err
        assert fabric(*line, "-q", env=AUTO).err == ""
        if line[0] != "generate":
            assert "cpu" in json.dumps(json.loads(fabric(*line, "--json", env=AUTO).out))
    resumed = fabric("resume", "run", cwd=tmp_path, env=AUTO)
    assert resumed.code == 0 and "on cpu," not in resumed.err


def test_an_accelerator_is_taken_and_the_next_device_where_it_does_not_open_or_fit(
    tiny: Path, rows: Path, tmp_path: Path, shim: Path
) -> None:
    card = behind(shim, SHIM_NAME="A Real Card", SHIM_DEDICATED="1")
    taken = train(tmp_path / "card", tiny, rows, card, "--json")
    assert taken.code == 0, taken.err
    assert taken.err.startswith("fabric train: on vulkan, A Real Card")
    assert json.loads(taken.out)["device"] == "vulkan"
    memory = {**behind(shim, SHIM_NAME="A Real Card", SHIM_DEDICATED="1", SHIM_FAIL="vkAllocateMemory 1 -2")}
    profiles = tmp_path / "config/fabric/profiles"
    profiles.mkdir(parents=True)
    (profiles / "small.toml").write_text('[match]\nbackend = "vulkan"\n[limits]\nmemory_bytes = 70000\n')
    small = {**card, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    for name, env, reason in (("full", memory, "not vulkan: "), ("small", small, "GiB of memory")):
        ended = train(tmp_path / name, tiny, rows, env, "--json")
        assert ended.code == 0, ended.err
        first = ended.err.splitlines()[0]
        assert "on cpu, " in first and "not vulkan: " in first and reason in first, first
        assert json.loads(ended.out)["device"] == "cpu"
        asked = train(tmp_path / f"{name}-asked", tiny, rows, {**env, "FABRIC_DEVICE": "vulkan"})
        assert asked.code == 69
