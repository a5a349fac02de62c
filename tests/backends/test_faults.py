"""Bad days of a driver, brought about by a library that stands before libvulkan: one sentence, exit code 69, nothing
half-written, and a run that goes on to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backends.shim import behind, build_shim, events
from tests.cli.conftest import rows, tiny, uneven
from tests.cli.shell import Ended, fabric, one_sentence

__all__ = ["rows", "tiny", "uneven"]

LOST, OUT_OF_MEMORY = -4, -2
SIMULTANEOUS_USE = 4  # of commands that may be submitted again


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


def train(folder: Path, tiny: Path, rows: Path, env: dict[str, str], *flags: str) -> Ended:
    """Four steps on Vulkan, each checkpointed."""
    return fabric(
        "train", rows, "-m", tiny, "-o", "a.gguf", "--device", "vulkan", "--steps", "4", "--rank", "2", "--ctx", "32",
        "--lr", "2e-4", "--batch", "1", "--checkpoint-every", "1", "--run-dir", "run", *flags,
        cwd=folder, env=env, timeout=300,
    )  # fmt: skip


def test_a_lost_device_ends_in_a_sentence_and_the_run_goes_on_to_the_same_bits(
    tiny: Path, rows: Path, tmp_path: Path, shim: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    done = train(whole, tiny, rows, behind(shim, whole / "log"), "--json")
    assert done.code == 0, done.err
    submits = len(events(whole / "log", "submit"))
    for function, part in (("vkQueueSubmit", 0.75), ("vkWaitForFences", 0.6), ("vkQueueSubmit", 0.5)):
        at = int(submits * part)
        folder = tmp_path / f"{function}{at}"
        folder.mkdir()
        lost = train(folder, tiny, rows, behind(shim, SHIM_FAIL=f"{function} {at} {LOST}"), "-q")
        one_sentence(lost, 69, "device was lost", "fabric resume run")
        assert not (folder / "a.gguf").exists()
        resumed = fabric("resume", "run", "--json", cwd=folder, timeout=300)
        assert resumed.code == 0, resumed.err
        assert json.loads(resumed.out)["sha256"] == json.loads(done.out)["sha256"]
        assert (folder / "a.gguf").read_bytes() == (whole / "a.gguf").read_bytes()


def test_commands_are_recorded_once_and_serve_feeds_of_any_size(
    tiny: Path, uneven: Path, tmp_path: Path, shim: Path
) -> None:
    (tmp_path / "fabric" / "profiles").mkdir(parents=True)
    (tmp_path / "fabric" / "profiles" / "patient.toml").write_text("[run]\nsubmit_ms = 10000\n")
    seen, sizes = {}, []
    for steps in (1, 6):
        folder = tmp_path / str(steps)
        folder.mkdir()
        env = {**behind(shim, folder / "log"), "XDG_CONFIG_HOME": str(tmp_path)}
        done = train(folder, tiny, uneven, env, "--steps", str(steps), "--ctx", "64", "--metrics", "told.jsonl")
        assert done.code == 0, done.err
        replayed = [flags for (flags,) in events(folder / "log", "record") if flags == SIMULTANEOUS_USE]
        seen[steps] = [len(replayed), *(len(events(folder / "log", kind)) for kind in ("dispatch", "pipeline"))]
        sizes = [json.loads(line)["tokens"] for line in (folder / "told.jsonl").read_text().splitlines()]
    assert len(set(sizes)) > 2
    assert seen[1] == seen[6]
    assert min(seen[1]) > 0


def test_a_device_without_memory_is_told_before_any_step(tiny: Path, rows: Path, tmp_path: Path, shim: Path) -> None:
    ended = train(tmp_path, tiny, rows, behind(shim, SHIM_FAIL=f"vkAllocateMemory 1 {OUT_OF_MEMORY}"), "-q")
    one_sentence(ended, 69, "could not allocate", "smaller")
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_in_a_step_leaves_a_run_that_goes_on(
    tiny: Path, rows: Path, tmp_path: Path, shim: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert train(whole, tiny, rows, behind(shim, whole / "log"), "-q").code == 0
    half = len(events(whole / "log", "submit")) // 2
    ended = train(tmp_path, tiny, rows, behind(shim, SHIM_FAIL=f"vkQueueSubmit {half} {OUT_OF_MEMORY}"), "-q")
    one_sentence(ended, 69, "ran out of memory", "fabric resume run")
    assert fabric("resume", "run", cwd=tmp_path, timeout=300).code == 0
    assert (tmp_path / "a.gguf").exists()


LACKING = {
    "an old libvulkan": ({"SHIM_HIDE": "vkGetPhysicalDeviceProperties2"}, "too old"),
    "a driver without a function": ({"SHIM_HIDE": "vkCmdDispatch"}, "vkCmdDispatch"),
    "a device with few buffers": ({"SHIM_BUFFERS": "4"}, "4 storage buffers a kernel"),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_driver_without_a_needed_feature_is_told_and_let_go(
    kind: str, tiny: Path, rows: Path, tmp_path: Path, shim: Path
) -> None:
    settings, words = LACKING[kind]
    ended = train(tmp_path, tiny, rows, behind(shim, tmp_path / "log", **settings), "-q")
    one_sentence(ended, 69, words)
    log = (tmp_path / "log").read_text()
    assert log.count("instance +") == log.count("instance -") > 0
    (tmp_path / "log").unlink()
    assert list(tmp_path.iterdir()) == []
    listed = fabric("devices", "--json", env=behind(shim, **settings))
    assert listed.code == 0
    if kind != "a driver without a function":
        assert any(words in said for said in json.loads(listed.out)["missing"])
