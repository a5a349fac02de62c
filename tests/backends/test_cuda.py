"""The CUDA backend without a card: behind a stand-in for NVIDIA's driver and compiler its numbers are the CPU's, every
call that fails ends cleanly, each bad day in one sentence, and every kernel compiles for every card."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.backends.cuda_standin import beside
from tests.cli.conftest import rows, tiny, uneven
from tests.cli.shell import Ended, fabric, one_sentence
from tests.native.test_ops import FLAGS, SOURCES, build
from tests.native.test_portable import architectures, compile_text, compile_together, nvrtc

__all__ = ["rows", "tiny", "uneven"]


def train(folder: Path, tiny: Path, rows: Path, device: str, env: dict[str, str], *flags: str) -> Ended:
    """Three steps, the rows of each fewer than there is room for."""
    return fabric(
        "train", rows, "-m", tiny, "-o", f"{device}.gguf", "--device", device, "--steps", "3", "--rank", "2",
        "--lr", "2e-4", "--ctx", "32", "--batch", "2", "--precision", "f32", "--metrics", f"{device}.jsonl", *flags,
        cwd=folder, env={"XDG_CACHE_HOME": str(folder / "cache"), **env}, timeout=300,
    )  # fmt: skip


def test_a_run_has_the_cpus_losses_and_its_kernels_are_kept(card: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for device, env in (("cpu", {}), ("cuda", beside(card, STANDIN_LOG=str(log)))):
        ended = train(tmp_path, tiny, rows, device, env)
        assert ended.code == 0, ended.err
    told = {name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("cpu", "cuda")}
    want, got = ([json.loads(line) for line in lines] for lines in told.values())
    for a, b in zip(want, got, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4 * a["grad_norm"]
    assert log.read_text().splitlines()[-1] == "alive 0"
    moved = [int(line.split()[0]) for line in log.read_text().splitlines() if line.endswith("out of turn")]
    assert max(moved) > 50  # launches that do not depend on each other ran in another order
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.cubin")}
    broken = next(iter(kept))
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "again").mkdir()
    again = train(tmp_path / "again", tiny, rows, "cuda", beside(card, XDG_CACHE_HOME=str(tmp_path / "cache")))
    assert again.code == 0, again.err
    anew = {path for path in (tmp_path / "cache").rglob("*.cubin") if path.stat().st_mtime_ns != kept.get(path)}
    assert anew == {broken}


def test_graphs_are_made_once_and_serve_feeds_of_any_size(card: Path, tiny: Path, uneven: Path, tmp_path: Path) -> None:
    logs = []
    for steps in (1, 4):
        folder = tmp_path / str(steps)
        folder.mkdir()
        ended = train(
            folder, tiny, uneven, "cuda", beside(card, STANDIN_LOG=str(folder / "log")), "--steps", str(steps)
        )
        assert ended.code == 0, ended.err
        logs.append(sorted((folder / "log").read_text().splitlines()))
        sizes = [json.loads(line)["tokens"] for line in (folder / "cuda.jsonl").read_text().splitlines()]
    assert len(set(sizes)) > 2
    assert logs[0] == logs[1]
    assert "graph" in logs[0]
    assert "launch" not in logs[0]


BAD_DAYS = {
    "no card": ({"STANDIN_ARCH": "0"}, "CUDA_VISIBLE_DEVICES"),
    "an old card": ({"STANDIN_ARCH": "61"}, "compute capability 6.1"),
    "an old driver": ({"STANDIN_VERSION": "11040"}, "update it to 525"),
    "a driver older than the compiler": ({"STANDIN_VERSION": "12040"}, "nvidia-cuda-nvrtc-cu12"),
    "a driver that does not start": ({"STANDIN_FAIL": "cuInit 1 999"}, "nvidia-smi"),
    "a card that is too small": ({"STANDIN_MEMORY": "200000"}, "memory"),
    "a card that is taken": ({"STANDIN_FAIL": "cuDevicePrimaryCtxRetain 1 46"}, "open the card"),
    "a kernel that does not compile": ({"STANDIN_FAIL": "nvrtcCompileProgram 1 6"}, "line 1: an error"),
    "a card that fails in a step": ({"STANDIN_FAIL": "cuGraphLaunch 3 700"}, "CUDA_ERROR_ILLEGAL_ADDRESS"),
}


@pytest.mark.parametrize("kind", BAD_DAYS)
def test_a_bad_day_is_one_sentence(kind: str, standin: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    settings, words = BAD_DAYS[kind]
    ended = train(tmp_path, tiny, rows, "cuda", beside(standin, **settings), "-q")
    one_sentence(ended, 69, words)
    assert not (tmp_path / "cuda.gguf").exists()


def test_without_the_compiler_the_user_hears_how_to_get_it(
    standin: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libcuda.so.1").symlink_to(standin / "libcuda.so.1")
    hidden = "u.find_spec = lambda n, *a: n != 'nvidia' and find(n, *a) or None"  # as if the package were not installed
    (tmp_path / "sitecustomize.py").write_text(f"import importlib.util as u\nfind = u.find_spec\n{hidden}")
    env = {"LD_LIBRARY_PATH": str(tmp_path / "driver"), "CUDA_HOME": "", "PYTHONPATH": str(tmp_path)}
    one_sentence(train(tmp_path, tiny, rows, "cuda", env, "-q"), 69, "pip install 'fabric-llm[cuda]'")


@pytest.mark.parametrize("architecture", ["75", "90"])
def test_every_call_that_fails_ends_cleanly(architecture: str, standin: Path, tmp_path: Path) -> None:
    program = tmp_path / "faults"
    sources = [
        str(path) for path in SOURCES if path.parent.name not in ("cpu", "metal", "vulkan") and path.name != "ops.c"
    ]
    flags = [*FLAGS, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [os.environ.get("CC", "cc"), *flags, *sources, str(Path(__file__).with_name("faults.c"))]
    compile_together([[*command, "-o", str(program), "-lm", "-lpthread", "-ldl"]])
    env = {**os.environ, **beside(standin, STANDIN_ARCH=architecture, STANDIN_MEMORY=str(16 << 20))}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = dict(re.findall(r"^(\w+) +(\d+) failing calls", done.stdout, re.MULTILINE))
    assert int(reached["cuGraphLaunch"]) > 0
    assert (int(reached["cuTensorMapEncodeTiled"]) > 0) == (architecture == "90")


def test_every_kernel_of_the_backend_compiles_for_every_card(standin: Path, tmp_path: Path) -> None:
    """Those that the op test asks for, one a kind; what assembles is checked by the assembler of a real card."""
    kinds = r"^\S+|-D(?:OP|KIND|\w_RAW|PARTS|WARPGROUP)=\S+"
    compiler, program, jobs = nvrtc(), build(os.environ.get("CC", "cc"), tmp_path / "ops", "-O1"), []
    for architecture in architectures(compiler, 80):
        log = tmp_path / str(architecture)
        env = {
            **os.environ,
            **beside(standin, STANDIN_ARCH=str(architecture), STANDIN_LOG=str(log)),
            "STANDIN_KEYS": "1",
        }
        subprocess.run([str(program), "quick", "cuda"], capture_output=True, check=False, env=env)
        keys = {line.removeprefix("compile ") for line in log.read_text().splitlines() if line.startswith("compile ")}
        chosen = {" ".join(re.findall(kinds, key)): key for key in sorted(keys) if ".kernel" not in key}
        assert {key.split()[0] for key in chosen} >= {"product_mma.cu", "attention.cu", "rows.cu", "decode.cu"}
        assert ("product_sm90.cu" in {key.split()[0] for key in chosen}) == (architecture == 90)
        jobs += [(architecture, key) for key in chosen.values()]
    sums = [key for at, key in jobs if at == 90 and "-DOP=1" in key and "-DSCALED=0" in key]
    jobs += [(90, key.replace("-DTERMS=1", f"-DTERMS={n}")) for key in sums for n in (2, 3)]
    for architecture, key in jobs:
        text, *options = key.split()
        suffix = "a" if architecture == 90 else ""
        compile_text(compiler, f'#include "{text}"\n', [f"--gpu-architecture=sm_{architecture}{suffix}", *options])


def test_gradients_of_an_input_of_several_layers_are_one_product(standin: Path, tmp_path: Path) -> None:
    """Of queries, keys and values, and of gate and up."""
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    model = write_model(tmp_path / "model.gguf", Shape(kv_heads=4, ffn=128))
    log = tmp_path / "log"
    fabric(
        "bench", "-m", model, "--device", "cuda", "--steps", "1", "--ctx", "128", "--batch", "1", "--modules", "all",
        env={"XDG_CACHE_HOME": str(tmp_path), **beside(standin, STANDIN_ARCH="90", STANDIN_LOG=str(log))},
    )  # fmt: skip
    told = log.read_text()
    assert re.search(r"product_sm90.* -DOP=1 .*-DTERMS=3", told), told[-3000:]
    assert re.search(r"product_sm90.* -DOP=1 .*-DTERMS=2", told)
