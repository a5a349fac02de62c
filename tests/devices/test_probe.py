"""`fabric devices --probe`: what it measures becomes a profile that the device then gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.devices.profiles import read_profile
from tests.backends.shim import behind
from tests.cli.shell import fabric, one_sentence
from tests.support.devices import vulkan


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("user")


def test_what_a_gpu_does_best_is_kept_among_the_users_profiles(user: Path, shim: Path) -> None:
    vulkan()
    env = {"XDG_CONFIG_HOME": str(user), "XDG_CACHE_HOME": str(user), **behind(shim, SHIM_LARGEST=str(100 << 20))}
    done = fabric("devices", "--probe", "--device", "vulkan", "--json", env=env, timeout=300)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert Path(told["file"]).parent == user / "fabric" / "profiles"
    match, values = read_profile(Path(told["file"]))
    assert match["name"] == [told["device"]]
    assert values == told["values"]
    fastest = min((what for what in told["seconds"] if " x " in what), key=lambda what: told["seconds"][what])
    assert fastest == f"{values['tile_rows']} x {values['tile_cols']}"
    assert values["precision"] == min(("f32", "bf16"), key=lambda what: told["seconds"][what])
    listed = json.loads(fabric("devices", "--json", env=env).out)["devices"]
    assert listed[0]["profile"]["name"] == "cpu"
    assert listed[1]["profile"]["values"].items() >= values.items()
    if told["driver"] == "llvmpipe":  # it claims 128 MiB, of which the library before it gives no more than 100
        assert values["max_binding_bytes"] == listed[1]["max_binding_bytes"] < 100 << 20


def test_a_processor_is_measured_into_a_file_of_choice(tmp_path: Path) -> None:
    done = fabric("devices", "--probe", "-o", "cpu.toml", cwd=tmp_path, timeout=300)
    assert done.code == 0, done.err
    match, values = read_profile(tmp_path / "cpu.toml")
    assert match["backend"] == "cpu"
    assert values.keys() == {"precision"}
    piped = fabric("devices", "--probe", "-o", "-", cwd=tmp_path, timeout=300)
    (tmp_path / "piped.toml").write_bytes(piped.out)
    assert read_profile(tmp_path / "piped.toml")[0] == match


def test_what_cannot_be_probed_is_told(tmp_path: Path) -> None:
    one_sentence(fabric("devices", "--probe", "--device", "vulkan:9"), 69, "vulkan:9")
    one_sentence(fabric("devices", "--probe", "--plan"), 2, "--plan", "--probe")
    one_sentence(fabric("devices", "-o", tmp_path / "x.toml"), 2, "--output", "--probe")
    one_sentence(fabric("devices", "--probe", "-o", tmp_path / "no" / "x.toml", timeout=300), 74, "x.toml")
