"""The tool that tries templates on conversations: over one template of each kind it finds no fault, and it would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.text import kinds


def tried(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("transformers", reason="its rendering is the truth")
    tool = [sys.executable, str(REPOSITORY / "tools" / "templates.py"), str(folder), *flags]
    return subprocess.run(tool, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=120)


@pytest.mark.parametrize("flags", [(), ("--no-vocabulary",)])
def test_every_kind_of_template_trains_what_transformers_renders(flags: tuple[str, ...], tmp_path: Path) -> None:
    done = tried(kinds.write(tmp_path), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("untrue 0 (U), wrong 0 (W)\n")
