"""The SYCL backend on the processor, through Intel's OpenCL: its numbers are the CPU's, whatever the limits, and each
bad day is one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.core.sycl import Missing, runtime, shim
from tests.backends.sycl_texts import UNITS
from tests.cli.conftest import rows, tiny, uneven
from tests.cli.shell import Ended, fabric, one_sentence
from tests.native.test_ops import build
from tests.support.paths import REPOSITORY, smollm2

__all__ = ["rows", "tiny", "uneven"]
JOINT = Path(__file__).with_name("joint.h")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache with the shim in it; skips where there is no SYCL."""
    folder = tmp_path_factory.mktemp("cache")
    try:
        shim(folder / "fabric" / "kernels", None)
    except Missing as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def failing(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same behind what lets calls fail."""
    folder = tmp_path_factory.mktemp("failing")
    shutil.copytree(cache, folder, dirs_exist_ok=True)
    (library,) = folder.rglob("shim.so")
    real = library.rename(library.with_name("real.so"))
    source = Path(__file__).with_name("sycl_faults.c")
    command = [
        os.environ.get("CC", "cc"), "-shared", "-fPIC", "-Wall", f"-I{REPOSITORY}/native/backends/sycl", str(source),
        "-Wl,--no-as-needed", str(real), "-o", str(library),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return folder


def train(folder: Path, tiny: Path, rows: Path, device: str, env: dict[str, str], *flags: str, name: str = "") -> Ended:
    """Three steps, the rows of each fewer than there is room for; every one checkpointed."""
    name = name or device
    return fabric(
        "train", rows, "-m", tiny, "-o", f"{name}.gguf", "--device", device, "--steps", "3", "--rank", "2",
        "--lr", "2e-4", "--ctx", "32", "--batch", "2", "--precision", "f32", "--metrics", f"{name}.jsonl",
        "--run-dir", f"run-{name}", "--checkpoint-every", "1", *flags, cwd=folder, env=env, timeout=600,
    )  # fmt: skip


def told(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def same(want: list[dict[str, float]], got: list[dict[str, float]]) -> None:
    assert len(want) == len(got) > 0
    for a, b in zip(want, got, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4 * a["grad_norm"]


def test_every_op_is_right_on_the_processor(cache: Path, tmp_path: Path) -> None:
    (library,) = cache.rglob("shim.so")
    program = build(os.environ.get("CC", "cc"), tmp_path / "ops", "-O1")
    done = subprocess.run(
        [str(program), "quick", "sycl"], capture_output=True, text=True, check=False,
        env={**os.environ, "OPS_SYCL": str(library)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# Each kind of product on one size of units: weights by their rows, by their columns, and two activations.
ON_UNITS = dict(zip(("linear", "linear_dx", "linear_dw"), UNITS, strict=True))


@pytest.mark.parametrize("op", ON_UNITS)
def test_products_of_joint_matrices_are_right(op: str, failing: Path, tmp_path: Path) -> None:
    (library,) = failing.rglob("shim.so")
    program = build(os.environ.get("CC", "cc"), tmp_path / "ops", "-O1", "-DFB_SLAB_BYTES=16384")
    env = {"OPS_SYCL": str(library), "SHIM_UNITS": ON_UNITS[op], "SHIM_JOINT": str(JOINT)}
    done = subprocess.run(
        [str(program), "quick", "sycl", op], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sycl, bf16 matrix units" in done.stdout


def test_a_run_has_the_cpus_losses_under_any_limits_and_so_has_generation(
    cache: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    limits = "max_binding_bytes = 65536\nmax_allocation_bytes = 131072\nworkgroups = 7\n"
    (tmp_path / "fabric" / "profiles").mkdir(parents=True)
    (tmp_path / "fabric" / "profiles" / "narrow.toml").write_text(f'[match]\nbackend = "sycl"\n[limits]\n{limits}')
    env = {"XDG_CACHE_HOME": str(cache)}
    for name, device, more in (
        ("cpu", "cpu", {}),
        ("sycl", "sycl", {}),
        ("narrow", "sycl", {"XDG_CONFIG_HOME": str(tmp_path)}),
    ):
        ended = train(tmp_path, tiny, rows, device, env | more, name=name)
        assert ended.code == 0, ended.err
    dry = train(tmp_path, tiny, rows, "sycl", env | more, "--dry-run", "--json", name="dry")
    assert json.loads(dry.out)["tiled"] > 0
    for name in ("sycl", "narrow"):
        same(told(tmp_path / "cpu.jsonl"), told(tmp_path / f"{name}.jsonl"))
    texts = [
        fabric(
            "generate", "-m", tiny, "--prompt", "Is 3 odd?", "--max-tokens", "8", "--precision", "f32",
            "--device", device, cwd=tmp_path, env=env, timeout=600,
        )
        for device in ("cpu", "sycl")
    ]  # fmt: skip
    assert [text.code for text in texts] == [0, 0], texts[1].err
    assert texts[0].out == texts[1].out
    listed = json.loads(fabric("devices", "--json", env=env).out)["devices"]
    assert [d["driver"].split()[0] for d in listed if d["backend"] == "sycl"] == ["OpenCL"]


def test_a_run_in_16_bits_uses_the_units_that_a_device_has_and_has_the_losses_of_one_without(
    failing: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    plain = {"XDG_CACHE_HOME": str(failing), "SHIM_LOG": str(tmp_path / "log")}
    units = plain | {"SHIM_UNITS": UNITS[0], "SHIM_JOINT": str(JOINT)}
    for name, env, used in (("plain", plain, False), ("units", units, True)):
        (tmp_path / "log").unlink(missing_ok=True)
        ended = train(tmp_path, tiny, rows, "sycl", env, "--precision", "bf16", name=name)
        assert ended.code == 0, ended.err
        assert ("matrix units" in (tmp_path / "log").read_text()) is used
    for a, b in zip(told(tmp_path / "plain.jsonl"), told(tmp_path / "units.jsonl"), strict=True):
        assert abs(a["loss"] - b["loss"]) < 2e-3 * a["loss"]  # weights are rounded to 16 bits
        assert abs(a["grad_norm"] - b["grad_norm"]) < 2e-2 * a["grad_norm"]
    for env, isa in ((plain, "sycl"), (units, "sycl, bf16 matrix units")):
        listed = json.loads(fabric("devices", "--json", env=env).out)["devices"]
        assert [d["isa"] for d in listed if d["backend"] == "sycl"] == [isa]


def test_kernels_are_built_once_and_serve_feeds_of_any_size(
    failing: Path, tiny: Path, uneven: Path, tmp_path: Path
) -> None:
    built = []
    for steps in (1, 5):
        env = {"XDG_CACHE_HOME": str(failing), "SHIM_LOG": str(tmp_path / f"log{steps}")}
        ended = train(tmp_path, tiny, uneven, "sycl", env, "--steps", str(steps), name=f"run{steps}")
        assert ended.code == 0, ended.err
        built.append((tmp_path / f"log{steps}").read_text())
    assert len({told_["tokens"] for told_ in told(tmp_path / "run5.jsonl")}) > 2
    assert built[0] == built[1] != ""


def test_a_real_model_has_the_cpus_losses(cache: Path, rows: Path, tmp_path: Path) -> None:
    for device in ("cpu", "sycl"):
        ended = train(
            tmp_path,
            smollm2(),
            rows,
            device,
            {"XDG_CACHE_HOME": str(cache)},
            "--batch",
            "1",
            "--ctx",
            "48",
            "--steps",
            "2",
        )
        assert ended.code == 0, ended.err
    same(told(tmp_path / "cpu.jsonl"), told(tmp_path / "sycl.jsonl"))


def test_a_lost_device_ends_in_a_sentence_and_the_run_goes_on_to_the_same_bits(
    failing: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    env = {"XDG_CACHE_HOME": str(failing)}
    assert train(tmp_path, tiny, rows, "sycl", env, name="whole").code == 0
    lost = train(tmp_path, tiny, rows, "sycl", env | {"SHIM_FAIL": "shim_run 300 2"}, "-q")
    one_sentence(lost, 69, "the device was lost", "fabric resume run-sycl")
    assert not (tmp_path / "sycl.gguf").exists()
    resumed = fabric("resume", "run-sycl", cwd=tmp_path, env=env, timeout=600)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "sycl.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


BAD_DAYS = {
    "no device": ("shim_count 1 0", "shows no device"),
    "a runtime that does not start": ("shim_count 1 -1", "does not start"),
    "a device that is taken": ("shim_open 1 2", "failed to open"),
    "a device without memory": ("shim_alloc 1 1", "could not allocate"),
    "memory that runs out": ("shim_run 9 1", "ran out of memory"),
    "a kernel that does not compile": ("shim_build 1 2", "use of undeclared identifier 'question'"),
    "a device that does not answer": ("shim_read 1 2", "the device was lost"),
}


@pytest.mark.parametrize("kind", BAD_DAYS)
def test_a_bad_day_is_one_sentence(kind: str, failing: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    fault, words = BAD_DAYS[kind]
    env = {"XDG_CACHE_HOME": str(failing), "SHIM_FAIL": fault}
    one_sentence(train(tmp_path, tiny, rows, "sycl", env, "-q"), 69, words)
    assert not (tmp_path / "sycl.gguf").exists()


def test_a_device_that_is_too_small_is_told_before_any_step(
    cache: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "fabric" / "profiles").mkdir(parents=True)
    (tmp_path / "fabric" / "profiles" / "small.toml").write_text("[limits]\nmemory_bytes = 200000\n")
    env = {"XDG_CACHE_HOME": str(cache), "XDG_CONFIG_HOME": str(tmp_path)}
    one_sentence(train(tmp_path, tiny, rows, "sycl", env, "-q"), 69, "memory")


LACKING = {
    "no runtime": "pip install 'fabric-llm[sycl]'",
    "no compiler": "no C++ compiler is here",
    "a compiler that fails": "g++ does not compile its shim (error: no such header)",
}


@pytest.mark.parametrize("kind", LACKING)
def test_what_is_lacking_is_told(kind: str, cache: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path / "bin")}
    if kind == "no runtime":  # as if the package were not installed
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.prefix = '/nonexistent'\n")
        env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{REPOSITORY}"
    if kind == "a compiler that fails":
        (tmp_path / "bin" / "g++").write_text(f"#!{sys.executable}\nraise SystemExit('error: no such header')\n")
        (tmp_path / "bin" / "g++").chmod(0o755)
    one_sentence(train(tmp_path, tiny, rows, "sycl", env, "-q"), 69, LACKING[kind])
    listed = fabric("devices", "--json", env=env)
    assert listed.code == 0
    assert any(LACKING[kind] in sentence for sentence in json.loads(listed.out)["missing"])


def test_a_wheel_that_brings_the_shim_needs_no_compiler(cache: Path, tmp_path: Path) -> None:
    place, built = tmp_path / "sycl", tmp_path / "built"
    place.mkdir()
    for name in ("include", "lib"):
        (place / name).symlink_to(runtime(None) / name)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "FABRIC_SYCL": str(place)}
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    (found,) = (built / "fabric" / "core").glob("shim-*.so")
    assert re.fullmatch(r"shim-libsycl\.so\.\d+\.so", found.name)
    shutil.rmtree(place)  # where it was built, no SYCL is left
    (native,) = (REPOSITORY / "fabric" / "core").glob("_native*.so")
    (built / "fabric" / "core" / native.name).symlink_to(native)
    env = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(built)}
    listed = fabric("devices", "--json", env=env, cwd=tmp_path)
    assert "sycl" in [device["backend"] for device in json.loads(listed.out)["devices"]], listed.err


def test_every_kernel_compiles_with_its_constants_built_in_as_for_a_gpu(cache: Path) -> None:
    (library,) = cache.rglob("shim.so")
    script = f"from tests.backends.sycl_texts import compile_all; print(compile_all({str(library)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=600
    )
    assert done.stdout.strip() == str([""] * (1 + len(UNITS))), done.stdout + done.stderr
