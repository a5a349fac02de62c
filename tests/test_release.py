"""What is published: a source package whose bits depend on its contents alone, and a checklist that stops at what is
missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fabric import __version__
from tests.support.paths import REPOSITORY


def copied(folder: Path, times: int) -> Path:
    """What git knows of the repository, with kernels that are compiled already; every file of that time."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for name in [*listed.splitlines(), "native/kernels/spirv.inc"]:
        if not (REPOSITORY / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
        (folder / name).chmod(0o600 if times else 0o664)
        os.utime(folder / name, (times, times))
    return folder


def test_two_builds_of_the_source_package_have_the_same_bits(tmp_path: Path) -> None:
    made = []
    for i in range(2):
        folder = copied(tmp_path / f"copy{i}", 1_000_000_000 * i)
        out = tmp_path / f"out{i}"
        out.mkdir()
        code = f"import building; building.build_sdist({str(out)!r})"
        env = {**os.environ, "PYTHONPATH": str(folder / "native")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        made.append(next(out.iterdir()))
    assert made[0].name == f"fabric_llm-{__version__}.tar.gz"
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"native/kernels/spirv.inc", "tests/wheel.py", "tests/parity/golden/model.gguf", "man/fabric.1"} <= names


STOPS = {
    "no section of the changelog": "CHANGELOG.md has no section '## 9.9.9'",
    "a tag that exists": "the tag v{version} exists: raise __version__",
    "changes": "there are changes that are not committed",
}


@pytest.mark.parametrize("kind", STOPS)
def test_the_checklist_of_a_release_stops_at_what_is_missing(kind: str, tmp_path: Path) -> None:
    for name in ("tools/release", "fabric/__init__.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    if kind.startswith("no"):
        (tmp_path / "fabric" / "__init__.py").write_text('__version__ = "9.9.9"\n')

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    if kind.startswith("a tag"):
        git("tag", f"v{__version__}")
    (tmp_path / "more").touch()
    done = subprocess.run(["tools/release"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"tools/release: {STOPS[kind].format(version=__version__)}" + (
        " in fabric/__init__.py\n" if kind.startswith("a tag") else "\n"
    )
