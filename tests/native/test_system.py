"""What differs between operating systems, on each of them that can be had here: this one, and Windows through Wine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.test_ops import FLAGS, ROOT, SOURCES
from tests.support.cross import Wine, zig

SYSTEM = [ROOT / "tests/native/system.c", ROOT / "native/os.c", ROOT / "native/graph/error.c"]
WINDOWS = "x86_64-windows-gnu"
ANSWER = "int answer(void);\nint answer(void) { return 42; }\n"
# A library that loads another one by its name alone, as NVRTC loads its builtins.
LOADS = """#include <windows.h>
__declspec(dllexport) int answer(void) {
    int (*beside)(void) = (int (*)(void))GetProcAddress(LoadLibraryA("beside.dll"), "answer");
    return beside ? beside() : 0;
}
"""
PLACE = "a folder, größer 日本"


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    found = Wine(tmp_path_factory.mktemp("windows"))
    yield found
    found.stop()


def test_threads_memory_files_libraries_and_faults_on_this_system(tmp_path: Path) -> None:
    program, folder = tmp_path / "system", tmp_path / PLACE
    folder.mkdir()
    subprocess.run(["cc", *FLAGS, "-O1", *map(str, SYSTEM), "-o", program, "-lm", "-lpthread", "-ldl"], check=True)
    (tmp_path / "answer.c").write_text(ANSWER)
    made = folder / ("answer.dylib" if sys.platform == "darwin" else "answer.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, tmp_path / "answer.c"], check=True)
    ended = [
        subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
        for words in (["all", folder], ["library", made], ["fault", tmp_path / "mapped"])
    ]
    assert [(one.returncode, one.stderr) for one in ended] == [(0, ""), (0, ""), (74, "the file is gone\n")]
    assert (folder / "ä 日.bin").read_bytes() == b"a\r\nb\nc\x1ad"


def test_threads_memory_files_libraries_and_faults_on_windows(wine: Wine, tmp_path: Path) -> None:
    program, folder = tmp_path / "system.exe", tmp_path / PLACE
    folder.mkdir()
    zig(WINDOWS, tmp_path, SYSTEM, "-O1", "-o", str(program), "-lshell32")
    for name, text in {"loads": LOADS, "beside": ANSWER.replace("int a", "__declspec(dllexport) int a", 1)}.items():
        (tmp_path / f"{name}.c").write_text(text)
        zig(WINDOWS, tmp_path, [f"{name}.c"], "-shared", "-o", f"{name}.dll")
        (tmp_path / f"{name}.dll").rename(folder / f"{name}.dll")
    ended = [
        wine.run(program, *words, cwd=folder)
        for words in (["all", folder], ["library", folder / "loads.dll"], ["fault", "-"])
    ]
    assert [(one.returncode, one.stderr.replace("\r", "")) for one in ended] == [
        (0, ""), (0, ""), (74, "the file is gone\n"),
    ]  # fmt: skip
    assert wine.run(program, "fault", "-", OTHER="1").returncode not in (0, 3, 74)
    assert (folder / "ä 日.bin").read_bytes() == b"a\r\nb\nc\x1ad"


def test_every_op_is_right_on_windows_where_the_core_links_as_one_library(wine: Wine, tmp_path: Path) -> None:
    zig(WINDOWS, tmp_path, SOURCES, "-O1", "-o", str(tmp_path / "ops.exe"))
    done = wine.run(tmp_path / "ops.exe", "quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "instruction set: generic" in done.stdout
