"""What a user loses if profiles fail: each key must do what it says, wrong ones be told, and flags come first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fabric.core import DeviceInfo
from fabric.devices.profiles import KEYS, profile_of, read_profile, shipped_profiles
from tests.backends.shim import behind, events
from tests.cli.shell import fabric, one_sentence
from tests.support.paths import REPOSITORY
from tests.support.random_models import write_model
from tests.support.shapes import Shape

TRAIN = ("--steps", "1", "--rank", "4", "--ctx", "64", "--batch", "4", "--run-dir", "run", "--json")


def with_profile(folder: Path, text: str, name: str = "mine") -> dict[str, str]:
    """The environment of a user who has a profile."""
    profiles = folder / "config" / "fabric" / "profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    (profiles / f"{name}.toml").write_text(text)
    return {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_CACHE_HOME": str(folder / "cache")}


def planned(folder: Path, tiny: Path, rows: Path, profile: str, *flags: str) -> dict[str, Any]:
    """What `train --dry-run` says on the CPU with a profile."""
    done = fabric("train", rows, "-m", tiny, "--dry-run", *TRAIN, *flags, cwd=folder, env=with_profile(folder, profile))
    assert done.code == 0, done.err
    values: dict[str, Any] = json.loads(done.out)
    return values


def trained(folder: Path, tiny: Path, rows: Path, profile: str, shim: Path) -> tuple[list[float], Path]:
    """Loss and gradient norm of a step on Vulkan with a profile, and what the driver saw."""
    folder.mkdir()
    log = folder / "log"
    done = fabric(
        "train", rows, "-m", tiny, "--device", "vulkan", *TRAIN, "--metrics", "-", cwd=folder, timeout=300,
        env={**with_profile(folder, profile), **behind(shim, log)},
    )  # fmt: skip
    assert done.code == 0, done.err
    steps = [json.loads(line) for line in done.out.decode().splitlines() if line.startswith('{"step"')]
    return [step[name] for step in steps for name in ("loss", "grad_norm")], log


def products(log: Path) -> list[list[float]]:
    """Constants of the product kernels: the only ones with numbers of rows and columns a thread."""
    return [constants for constants in events(log, "pipeline") if constants[7]]


def test_keys_of_a_run_do_what_they_say_and_flags_come_first(tiny: Path, rows: Path, tmp_path: Path) -> None:
    plain = planned(tmp_path, tiny, rows, "")
    run = 'precision = "f32"\nmicro_batch = 20\ncheckpointing = true\n'
    told = planned(tmp_path, tiny, rows, f"[run]\n{run}[limits]\nmax_binding_bytes = 65536\n")
    assert (told["precision"], told["checkpointing"], plain["checkpointing"]) == ("f32", True, False)
    assert told["micro_batch_tokens"] < plain["micro_batch_tokens"] <= 64
    assert told["tiled"] > plain["tiled"] == 0
    other = "bf16" if plain["precision"] == "f32" else "f32"
    assert planned(tmp_path, tiny, rows, f'[run]\nprecision = "{other}"\n')["precision"] == other
    flags = planned(tmp_path, tiny, rows, f"[run]\n{run}", "--precision", "bf16", "--no-checkpointing")
    assert (flags["precision"], flags["checkpointing"]) == ("bf16", False)
    (tmp_path / "fabric.toml").write_text('[train]\nprecision = "bf16"\n')
    assert planned(tmp_path, tiny, rows, f"[run]\n{run}")["precision"] == "bf16"


def test_a_run_that_is_resumed_keeps_what_the_profile_said(tiny: Path, rows: Path, tmp_path: Path) -> None:
    env = with_profile(tmp_path, "[run]\nmicro_batch = 20\n")
    done = fabric("train", rows, "-m", tiny, *TRAIN, cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert kept["micro_batch"] == 20
    resumed = fabric("resume", "run", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["sha256"] == json.loads(done.out)["sha256"]


def test_the_fastest_layout_that_leaves_room_is_taken_and_kept(
    tiny: Path, rows: Path, tmp_path: Path, shim: Path
) -> None:
    card = behind(shim, SHIM_NAME=NAMES["nvidia"], SHIM_DEDICATED="1")
    flags = ("train", rows, "-m", tiny, "--device", "vulkan", "--precision", "f32", "--rank", "4", "--ctx", "50",
             "--batch", "12", "--steps", "2")  # fmt: skip

    def layout(memory: int) -> dict[str, Any]:
        limits = with_profile(tmp_path, f"[limits]\nmemory_bytes = {memory}\n")
        done = fabric(*flags, "--dry-run", "--json", env={**limits, **card}, timeout=300)
        assert done.code == 0, done.err
        values: dict[str, Any] = json.loads(done.out)
        return values

    def just_short_of(values: dict[str, Any]) -> int:
        return int((values["planned_bytes"] + values["uploaded_bytes"]) * 4 // 3 - 4)

    whole = layout(1 << 40)
    assert whole["micro_batch_tokens"] == whole["tokens"] > 4 * 50, "all twelve rows at once"
    half = layout(just_short_of(whole))
    assert half["micro_batch_tokens"] == whole["micro_batch_tokens"] // 2
    assert not half["checkpointing"]
    least = half
    while not least["checkpointing"]:
        smaller = layout(just_short_of(least))
        assert smaller["checkpointing"] or smaller["micro_batch_tokens"] < least["micro_batch_tokens"]
        assert smaller["planned_bytes"] < least["planned_bytes"]
        least = smaller
    told = {}
    for name, memory in {"whole": 1 << 40, "half": just_short_of(whole)}.items():
        env = {**with_profile(tmp_path, f"[limits]\nmemory_bytes = {memory}\n"), **card}
        done = fabric(*flags, "--run-dir", name, "--metrics", "-", cwd=tmp_path, env=env, timeout=300)
        assert done.code == 0, done.err
        told[name] = [json.loads(line)["loss"] for line in done.out.decode().splitlines()]
        kept = json.loads((tmp_path / name / "run.json").read_text())["settings"]["micro_batch"]
        assert kept == (2048 if name == "whole" else half["micro_batch_tokens"])
    assert told["half"] == pytest.approx(told["whole"], rel=1e-5)


LIMITS = {
    "workgroup_bytes = 16384": lambda log: all(c[9] == 0 for c in products(log) if c[5] == c[6] == 64),
    "workgroup_threads = 128": lambda log: max(c[0] for c in events(log, "pipeline")) <= 128,
    "workgroups = 7": lambda log: max(size for xyz in events(log, "dispatch") for size in xyz) <= 7,
    "max_allocation_bytes = 65536": lambda log: max(size for (size,) in events(log, "allocate")) <= 65536,
    "max_binding_bytes = 65536": lambda log: True,
}
RUN = {
    "tile_rows = 16": lambda log: max(c[5] for c in products(log)) == 16,
    "tile_cols = 32": lambda log: max(c[6] for c in products(log)) == 32,
}


def test_limits_and_tiles_reach_the_driver_and_change_no_number(
    tiny: Path,
    rows: Path,
    tmp_path: Path,
    shim: Path,
) -> None:
    want, plain = trained(tmp_path / "plain", tiny, rows, "", shim)
    for table, cases in {"limits": LIMITS, "run": RUN}.items():
        for line, holds in cases.items():
            if line != "max_binding_bytes = 65536":
                assert not holds(plain), f"{line} would change nothing here"
            got, log = trained(tmp_path / line.split()[0], tiny, rows, f"[{table}]\n{line}\n", shim)
            assert holds(log), line
            assert got == pytest.approx(want, rel=1e-5), line
            if line == "max_binding_bytes = 65536":
                assert len(events(log, "dispatch")) > len(events(plain, "dispatch"))


def test_submissions_are_as_short_as_the_profile_says(rows: Path, tmp_path: Path, shim: Path) -> None:
    model = write_model(tmp_path / "wide.gguf", Shape(hidden=256, head_dim=64))
    (want, long), (got, short) = (
        trained(tmp_path / str(ms), model, rows, f"[run]\nsubmit_ms = {ms}\n", shim) for ms in (10_000, 1)
    )
    assert len(events(short, "submit")) > 2 * len(events(long, "submit"))
    assert len(events(short, "dispatch")) > len(events(long, "dispatch")), "no launch was parted"
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", "vulkan"])
def test_a_duty_below_one_sleeps_between_submissions(
    device: str,
    tiny: Path,
    rows: Path,
    tmp_path: Path,
    shim: Path,
) -> None:
    slept = {}
    for duty in ("0.5", "1"):
        log = tmp_path / duty
        done = fabric(
            "train", rows, "-m", tiny, "--device", device, *TRAIN[:-3], "--run-dir", f"run{duty}", cwd=tmp_path,
            env={**with_profile(tmp_path, f"[run]\nduty = {duty}\n"), **behind(shim, log)}, timeout=300,
        )  # fmt: skip
        assert done.code == 0, done.err
        slept[duty] = sum(seconds for (seconds,) in events(log, "sleep"))
        assert device == "vulkan" or not log.exists() or "instance" not in log.read_text(), "no driver but the CPU's"
    assert slept["0.5"] > 0 == slept["1"]


def listed(env: dict[str, str]) -> list[dict[str, Any]]:
    done = fabric("devices", "--json", env=env)
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)["devices"]
    return found


NAMES = {
    "adreno": "Adreno (TM) 740",
    "mali": "Mali-G715-Immortalis MC11",
    "apple": "Apple M2 Pro",
    "amd": "AMD Radeon RX 7900 XTX (RADV NAVI31)",
    "intel": "Intel(R) Iris(R) Xe Graphics (TGL GT2)",
    "nvidia": "NVIDIA H100 80GB HBM3",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_device_gets_the_profile_of_its_kind(name: str, shim: Path) -> None:
    found = listed(behind(shim, SHIM_NAME=NAMES[name]))
    assert [d["profile"]["name"] for d in found if d["backend"] != "sycl"] == ["cpu", name]
    assert found[1]["profile"]["values"]


def test_software_drivers_are_known_by_their_driver(shim: Path) -> None:
    assert listed(behind(shim))[1]["profile"]["name"] == "lavapipe"


@pytest.mark.parametrize(("has", "used"), [("bf16 f16", "bf16"), ("bf16", "bf16"), ("f16", "f16"), ("f32", None)])
def test_the_matrix_units_of_a_card_are_found(has: str, used: str | None, shim: Path) -> None:
    assert listed(behind(shim, SHIM_UNITS=has))[1]["isa"] == (f"spirv, {used} matrix units" if used else "spirv")


def test_no_device_is_of_two_kinds() -> None:
    for backend, name, driver in [
        ("cpu", "Intel(R) Xeon(R) Platinum 8480+", ""), ("cpu", "AMD EPYC 9B14", ""), ("cpu", "Apple M2 Pro", ""),
        ("vulkan", "llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe"),
        ("vulkan", "SwiftShader Device (Subzero)", "SwiftShader driver"),
        *(("vulkan", name, "") for name in NAMES.values()),
    ]:  # fmt: skip
        info = DeviceInfo(backend, name, "", 0, 0, False, False, False, False, 0, 0, 0, 0, driver, 0, 0, 0)
        assert len(profile_of(info).files) == 1, name
    assert {path.stem for path in shipped_profiles()} == {*NAMES, "lavapipe", "cpu", "metal"}


def test_a_users_profile_adds_to_the_shipped_one_where_all_of_its_match_fits(tmp_path: Path, shim: Path) -> None:
    text = '[match]\nbackend = "vulkan"\nname = ["NOTHING", "adreno"]\n{}[run]\nduty = 0.3\n'
    env = {**with_profile(tmp_path, text.format(""), "hot"), **behind(shim, SHIM_NAME=NAMES["adreno"])}
    cpu, phone, *_ = listed(env)
    assert (cpu["profile"]["name"], phone["profile"]["name"]) == ("cpu", "adreno + hot")
    assert phone["profile"]["values"]["duty"] == 0.3
    assert phone["profile"]["values"]["tile_rows"] == 32
    with_profile(tmp_path, text.format('driver = ["Qualcomm"]\n'), "hot")
    assert listed(env)[1]["profile"]["name"] == "adreno"
    with_profile(tmp_path, text.replace("vulkan", "cpu").format(""), "hot")
    assert listed(env)[1]["profile"]["name"] == "adreno"


WRONG = {
    "[run]\n\nduti = 1.0\n": (3, "duti", "did you mean duty?", "submit_ms"),
    "[run]\nduty = 2\n": (2, "duty", "0.05 to 1", "2"),
    "[run]\nsubmit_ms = 0.5\n": (2, "submit_ms", "1 to 10000 milliseconds"),
    "[limits]\nworkgroups = true\n": (2, "workgroups", "1 to"),
    "# mine\n[run]\nprecision = 'f16'\n": (3, "precision", '"f32" or "bf16"', "f16"),
    "[run]\nweights = 'auto'\n": (2, "weights", '"blocks" or "16bit"', "auto"),
    "[run]\ntile_rows = 48\n": (2, "tile_rows", "16, 32 or 64"),
    "[match]\nname = 'Adreno'\n": (2, "name", "a list of strings"),
    "[match]\nbackend = 'opencl'\n": (2, "backend", '"cpu", "cuda", "metal", "sycl" or "vulkan"'),
    "[limits]\nduty = 1.0\n": (2, "duty", "workgroups"),
    "\n[speed]\n": (2, "speed", "match", "limits", "run"),
    "duty = 0.5\n": (1, "duty", "match", "limits", "run"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_key_or_value_is_told_with_its_line_and_what_is_allowed(text: str, tmp_path: Path) -> None:
    line, *words = WRONG[text]
    one_sentence(fabric("devices", env=with_profile(tmp_path, text)), 2, f"mine.toml:{line}", *map(str, words))


def test_what_is_no_toml_is_told(tmp_path: Path) -> None:
    one_sentence(fabric("devices", env=with_profile(tmp_path, "[run\n")), 2, "mine.toml", "not valid TOML", "line 1")


def test_every_key_is_documented_with_what_it_takes() -> None:
    text = (REPOSITORY / "docs" / "devices.md").read_text()
    for name, key in KEYS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{key.table}.{name}`"))
        assert key.allowed in row, name


def test_shipped_profiles_hold_what_a_profile_may() -> None:
    for path in shipped_profiles():
        match, values = read_profile(path)
        assert match and values, path
