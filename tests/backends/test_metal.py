"""The Metal backend without Apple's hardware: behind a stand-in for the Objective-C runtime and Metal its numbers are
the CPU's, its kernels run on the processor, their address spaces are checked, every call that fails ends cleanly and
each bad day in one sentence, and it compiles for macOS and iOS."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import rows, tiny, uneven
from tests.cli.shell import Ended, fabric, one_sentence
from tests.native.test_ops import FLAGS, ROOT, SOURCES, build
from tests.native.test_portable import EMULATED, compile_together
from tests.support.cross import zig
from tests.support.paths import smollm2

__all__ = ["rows", "tiny", "uneven"]
FOLDER = ROOT / "native" / "backends" / "metal"
SHIM = f"-I{EMULATED}/metal"


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the libraries, and of the kernels that were compiled."""
    folder = tmp_path_factory.mktemp("metal")
    source = str(Path(__file__).with_name("metal_standin.c"))
    flags = [*FLAGS, "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]  # its fibers jump from stack to stack
    compile_together(
        [[os.environ.get("CC", "cc"), *flags, source, "-o", str(folder / "libobjc.A.dylib"), "-lm", "-ldl"]]
    )
    (folder / "libMetal.dylib").symlink_to(folder / "libobjc.A.dylib")
    (folder / "kernels").mkdir()
    return folder


def beside(standin: Path, **settings: str) -> dict[str, str]:
    """The environment of a command that finds a GPU whose kernels run; settings such as STANDIN_FAMILY."""
    compiler = f"g++ -std=c++17 -O3 -march=native -w -fPIC -shared {SHIM}"
    found = {"LD_LIBRARY_PATH": str(standin), "STANDIN_CACHE": str(standin / "kernels"), "STANDIN_CXX": compiler}
    return {**found, **settings}


@pytest.fixture(scope="module")
def ops(standin: Path) -> dict[str, str]:
    """What the op test says of a GPU with simdgroup matrices, and of one without."""
    program = build(os.environ.get("CC", "cc"), standin / "ops", "-O1")
    told = {}
    for family in ("1007", "1006"):
        env = {**os.environ, **beside(standin, STANDIN_FAMILY=family, STANDIN_LOG=str(standin / "log"))}
        done = subprocess.run([str(program), "quick", "metal"], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        told[family] = done.stdout
    return told


def test_every_op_is_right_with_and_without_simdgroup_matrices(ops: dict[str, str], standin: Path) -> None:
    assert "simdgroup" in ops["1007"]
    assert "simdgroup" not in ops["1006"]
    assert [line for line in (standin / "log").read_text().splitlines() if line != "pipeline"] == ["alive 0"] * 2
    texts = [path.read_text() for path in (standin / "kernels").glob("*.metal")]
    assert sum("simdgroup_multiply_accumulate" in text for text in texts) > 8
    names = {name for text in texts for name in re.findall(r"^KERNEL\((\w+)\)", text, re.MULTILINE)}
    assert names >= {path.stem for path in (ROOT / "native" / "kernels").glob("*.kernel")} - {"attention_few"}


def test_no_kernel_mixes_address_spaces(ops: dict[str, str], standin: Path, tmp_path: Path) -> None:
    clang = [shutil.which("clang++") or "", "-std=c++17", "-fsyntax-only", "-w", "-DADDRESS_SPACES", SHIM]
    if not clang[0]:
        pytest.skip("clang is not installed")
    texts = [path.read_text() for path in sorted((standin / "kernels").glob("*.metal"))]
    kinds = {(re.findall(r"^KERNEL\((\w+)\)", text, re.MULTILINE)[0], "simdgroup_load" in text): text for text in texts}
    assert ops
    jobs = []
    for (name, on_simdgroups), text in kinds.items():
        source = tmp_path / f"{name}{int(on_simdgroups)}.cpp"
        source.write_text(text.replace("EMULATED_ENTRY", ""))
        jobs.append([*clang, str(source)])
    compile_together(jobs)
    bent = tmp_path / "bent.cpp"
    bent.write_text(kinds["product", True].replace("threadgroup float *const sh;", "device float *const sh;"))
    done = subprocess.run([*clang, str(bent)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "address space" in done.stderr


def train(folder: Path, model: Path, rows: Path, device: str, env: dict[str, str], *flags: str) -> Ended:
    """A few steps in F32, the rows of each fewer than there is room for."""
    return fabric(
        "train", rows, "-m", model, "-o", f"{device}.gguf", "--device", device, "--rank", "2", "--ctx", "64",
        "--lr", "2e-4", "--precision", "f32", "--metrics", f"{device}.jsonl", *flags, cwd=folder, env=env, timeout=300,
    )  # fmt: skip


def has_the_cpus_losses(folder: Path, model: Path, rows: Path, standin: Path, *flags: str) -> None:
    log = folder / "log"
    for device, env in (("cpu", {}), ("metal", beside(standin, STANDIN_LOG=str(log)))):
        ended = train(folder, model, rows, device, env, *flags)
        assert ended.code == 0, ended.err
    told = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("cpu", "metal")]
    want, got = ([json.loads(line) for line in lines] for lines in told)
    for a, b in zip(want, got, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5 * max(1, a["loss"])
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4 * a["grad_norm"]
    assert log.read_text().splitlines()[-1] == "alive 0"


def test_training_and_generation_are_the_cpus(standin: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    has_the_cpus_losses(tmp_path, tiny, rows, standin, "--steps", "3", "--batch", "4")
    texts = []
    for device, env in (("cpu", {}), ("metal", beside(standin))):
        ended = fabric(
            "generate", rows, "-m", tiny, "-a", "cpu.gguf", "--max-tokens", "6", "--device", device,
            "--precision", "f32", cwd=tmp_path, env=env, timeout=120,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        texts.append(ended.out)
    assert texts[0] == texts[1] != b""


def test_kernels_are_compiled_once_and_serve_feeds_of_any_size(
    standin: Path, tiny: Path, uneven: Path, tmp_path: Path
) -> None:
    logs = []
    for steps in (1, 5):
        folder = tmp_path / str(steps)
        folder.mkdir()
        env = beside(standin, STANDIN_LOG=str(folder / "log"))
        ended = train(folder, tiny, uneven, "metal", env, "--steps", str(steps), "--batch", "2")
        assert ended.code == 0, ended.err
        logs.append((folder / "log").read_text())
        sizes = [json.loads(line)["tokens"] for line in (folder / "metal.jsonl").read_text().splitlines()]
    assert len(set(sizes)) > 2
    assert logs[0] == logs[1]
    assert "pipeline" in logs[0]


def test_smollm2_has_the_cpus_losses(standin: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Is 3 odd?"}, {"role": "assistant", "content": "Yes."}]
    row = tmp_path / "row.jsonl"
    row.write_text(json.dumps({"messages": chat}) + "\n")
    has_the_cpus_losses(tmp_path, smollm2(), row, standin, "--steps", "2", "--batch", "1")


def test_a_profiles_limits_hold(standin: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    profiles = tmp_path / "fabric" / "profiles"
    profiles.mkdir(parents=True)
    limits = (
        "max_binding_bytes = 65536\nmax_allocation_bytes = 131072\nworkgroup_bytes = 16384\nworkgroup_threads = 128"
    )
    paces = "workgroups = 3\n[run]\ntile_rows = 16\ntile_cols = 32\nsubmit_ms = 1\nduty = 0.9"
    (profiles / "mine.toml").write_text(f'[match]\nbackend = "metal"\n[limits]\n{limits}\n{paces}\n')
    for name in ("plain", "tight"):
        (tmp_path / name).mkdir()
        env = beside(standin, **({"XDG_CONFIG_HOME": str(tmp_path)} if name == "tight" else {}))
        ended = train(tmp_path / name, tiny, rows, "metal", env, "--steps", "2", "--batch", "2", "--ctx", "32")
        assert ended.code == 0, ended.err
    plain, tight = ((tmp_path / name / "metal.jsonl").read_text().splitlines() for name in ("plain", "tight"))
    for a, b in zip(map(json.loads, plain), map(json.loads, tight), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5


BAD_DAYS = {
    "no GPU": ({"STANDIN_DEVICES": "0"}, "no GPU"),
    "an old GPU": ({"STANDIN_FAMILY": "1003"}, "A11"),
    "a working set that is too small": ({"STANDIN_MEMORY": "300000"}, "memory"),
    "no queue": ({"STANDIN_FAIL": "newCommandQueue 1 1"}, "command queue"),
    "no memory": ({"STANDIN_FAIL": "newBufferWithLength:options: 3 1"}, "could not allocate"),
    "a kernel that does not compile": (
        {"STANDIN_FAIL": "newLibraryWithSource:options:error: 4 9"},
        "the 9th kind of mistake in two lines",
    ),
    "a kernel with too few threads": ({"STANDIN_FAIL": "maxTotalThreadsPerThreadgroup 2 1"}, "runs 32 of it"),
    "a GPU that fails": ({"STANDIN_FAIL": "commit 2 3"}, "Caused GPU Hang Error"),
    "a command that takes too long": ({"STANDIN_FAIL": "commit 2 2"}, "submit_ms"),
    "a command without memory": ({"STANDIN_FAIL": "commit 2 8"}, "ran out of memory"),
}


@pytest.mark.parametrize("kind", BAD_DAYS)
def test_a_bad_day_is_one_sentence(kind: str, standin: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    settings, words = BAD_DAYS[kind]
    env = {"LD_LIBRARY_PATH": str(standin), **settings}  # nothing has to be computed
    one_sentence(train(tmp_path, tiny, rows, "metal", env, "-q", "--steps", "3", "--batch", "2"), 69, words)
    assert not (tmp_path / "metal.gguf").exists()


@pytest.mark.parametrize(("code", "words"), [("7", "background"), ("11", "The GPU is gone")])
def test_a_run_that_lost_its_gpu_goes_on_from_its_checkpoint(
    code: str, words: str, standin: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    flags = ("-q", "--steps", "4", "--batch", "2", "--checkpoint-every", "1", "--run-dir", "run")
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder in (whole, parted):
        folder.mkdir()
    log = tmp_path / "commits"
    assert train(whole, tiny, rows, "metal", beside(standin, STANDIN_LOG=str(log)), *flags).code == 0
    ended = train(parted, tiny, rows, "metal", beside(standin, STANDIN_FAIL=f"commit 10 {code}"), *flags)
    one_sentence(ended, 69, words)
    assert list((parted / "run").glob("step-*.ckpt"))
    resumed = fabric("resume", "run", "-q", cwd=parted, env=beside(standin), timeout=120)
    assert resumed.code == 0, resumed.err
    assert (parted / "metal.gguf").read_bytes() == (whole / "metal.gguf").read_bytes()


@pytest.mark.parametrize("family", ["1006", "1007"])
def test_every_call_that_fails_ends_cleanly(family: str, standin: Path, tmp_path: Path) -> None:
    program = tmp_path / "faults"
    sources = [
        str(path) for path in SOURCES if path.parent.name not in ("cpu", "cuda", "vulkan") and path.name != "ops.c"
    ]
    flags = [*FLAGS, "-O1", "-DMETAL", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [os.environ.get("CC", "cc"), *flags, *sources, str(Path(__file__).with_name("faults.c"))]
    compile_together([[*command, "-o", str(program), "-lm", "-lpthread", "-ldl"]])
    env = {**os.environ, "LD_LIBRARY_PATH": str(standin), "STANDIN_FAMILY": family, "STANDIN_MEMORY": str(64 << 20)}
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    reached = dict(re.findall(r"^([\w:]+) +(\d+) failing calls", done.stdout, re.MULTILINE))
    for name in ("commit", "blitCommandEncoder", "newBufferWithBytes:length:options:", "MTLCopyAllDevices"):
        assert int(reached[name]) > 0, done.stdout


# Types of the table as the runtime encodes them (NSUInteger Q, NSInteger q; r: to what is const).
ENCODINGS = {
    "void": "v", "mtl_id": "@", "mtl_sel": ":", "mtl_uint": "Q", "uint64_t": "Q", "mtl_int": "q", "mtl_bool": "B",
    "double": "d", "const char *": "r*", "const void *": "r^v", "void *": "^v", "mtl_id *": "^@", "mtl_block": "@?",
    "mtl_size": "{?=QQQ}",
}  # fmt: skip


def test_each_selector_of_the_table_has_the_types_that_it_says_and_its_page() -> None:
    text = (FOLDER / "objc.h").read_text().replace("\\\n", "")
    table = re.findall(r'X\((\w+), "([\w:]+)", ([\w *]+), \(([^()]*)\), "([^"]+)",\s+"([^"]+)"\)', text)
    used = set(re.findall(r"SEND\((\w+)", "".join(path.read_text() for path in FOLDER.glob("*.c"))))
    assert {name for name, *_ in table} == used
    for name, selector, returned, parameters, encoding, page in table:
        kinds = [kind.strip() for kind in parameters.split(",")]
        oneway = "V" if selector == "release" else ""
        assert oneway + ENCODINGS[returned] + "".join(ENCODINGS[kind] for kind in kinds) == encoding, name
        assert selector.count(":") == len(kinds) - 2, name
        assert re.fullmatch(r"(metal|foundation|objectivec)/\S+", page), name


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core as a Swift package."""
    folder = tmp_path_factory.mktemp("swift") / "CFabric"
    subprocess.run([sys.executable, ROOT / "tools" / "swift_package.py", folder], check=True)
    return folder


@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-macos", "aarch64-ios"])
def test_the_swift_package_alone_compiles_for(target: str, package: Path, tmp_path: Path) -> None:
    sources, ios = sorted(package.rglob("*.c")), target.endswith("ios")
    assert {path.stem for path in (ROOT / "native").rglob("*.c")} < {path.stem for path in sources}
    flags = ["-O0", f"-I{package / 'Sources' / 'CFabric' / 'include'}"]
    if ios:  # of which it has the headers, under another name
        found = importlib.util.find_spec("ziglang")
        if found is not None and found.origin is not None:
            flags += ["-isystem", str(Path(found.origin).parent / "lib" / "libc" / "include" / "any-darwin-any")]
    zig(target, tmp_path, sources, *flags, *(["-c"] if ios else ["-shared", "-o", "core.dylib"]))
    made = list(tmp_path.glob("*.o")) if ios else [tmp_path / "core.dylib"]
    assert made
    for path in made:
        assert path.read_bytes()[:4] == b"\xcf\xfa\xed\xfe"  # Mach-O, 64 bits


def test_the_swift_package_is_a_module(package: Path, tmp_path: Path) -> None:
    if not shutil.which("clang"):
        pytest.skip("clang is not installed")
    uses = tmp_path / "uses.c"
    uses.write_text("#pragma clang module import CFabric\nint main(void) { return fb_device_count() + FB_PEAK_F32; }\n")
    module = f"-fmodule-map-file={package / 'Sources/CFabric/include/module.modulemap'}"
    flags = ["-std=c11", "-Werror", "-fmodules", f"-fmodules-cache-path={tmp_path}", module, "-fsyntax-only"]
    subprocess.run(["clang", *flags, uses], check=True)
    assert 'targets: [.target(name: "CFabric")]' in (package / "Package.swift").read_text()
