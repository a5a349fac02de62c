"""The counts that docs/architecture.md states: what an op, an architecture, a format or a backend costs to add."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fabric.models import architectures

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"


def text(path: str) -> str:
    return (NATIVE / path).read_text(encoding="utf-8")


def ops() -> list[str]:
    enum = text("graph/backend.h").split("typedef enum fb_op {")[1].split("} fb_op;")[0]
    return re.findall(r"FB_OP_(\w+)", enum.replace("FB_OP_COUNT", ""))


def test_native_can_be_read_in_a_day() -> None:
    """Every source counts, whatever its language."""
    sources = {".c", ".h", ".cpp", ".kernel", ".prelude", ".comp", ".cu", ".metal"}
    files = [p for p in NATIVE.rglob("*") if p.suffix in sources]
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in files) < 21_000


def test_no_file_is_more_than_one_room() -> None:
    for path in NATIVE.rglob("*.[ch]"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 800, path
    for path in (ROOT / "fabric").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


def test_an_op_is_one_row_of_each_table() -> None:
    for op in ops():
        assert len(re.findall(rf"\[FB_OP_{op}\]", text("graph/autodiff.c"))) == 1, f"{op}: rows in fb_ops"
        assert len(re.findall(rf"\*  {op} +(?:out|io) ", text("graph/backend.h"))) == 1, f"{op}: operand table"
        assert len(re.findall(rf"\[FB_OP_{op}\]", text("backends/cpu/kernels.h"))) == 1, f"{op}: CPU kernels"
        assert len(re.findall(rf"\[FB_OP_{op}\]", text("kernels/lower.c"))) == 1, f"{op}: portable kernels"


def test_operands_are_named_as_the_table_of_ops_names_them() -> None:
    table, lists = text("graph/backend.h"), text("graph/operands.h")
    for op in ops():
        row = re.search(rf"\*  {op} +(.*)", table)
        listed = re.search(rf"#define fb_{op.lower()}_views\(X\) (.*)", lists)
        assert row is not None and listed is not None, op
        told = [re.sub(r"\[?(?:out |io )?\[?", "", part.strip(), count=1) for part in row[1].split("  ")[0].split(";")]
        assert [re.match(r"\w+", part)[0] for part in told] == re.findall(r"X\((\w+)\)", listed[1]), op  # type: ignore[index]
        assert f"X({op.lower()})" in lists, op


def test_no_op_is_known_beyond_its_tables_and_the_graph() -> None:
    """A backend's other files and the planners do not list ops, but for the few that are cut along columns."""
    for path in [*NATIVE.glob("graph/memory.c"), *NATIVE.glob("quant/*.c"), *NATIVE.glob("os.c")]:
        assert "FB_OP_" not in path.read_text(encoding="utf-8"), path


def test_the_graph_knows_no_backend_by_name() -> None:
    """What it needs to know of a device is in fb_device_info."""
    names = "|".join(path.name for path in (NATIVE / "backends").iterdir() if path.is_dir())
    for path in (NATIVE / "graph").iterdir():
        assert not re.findall(rf"(?i){names}", path.read_text(encoding="utf-8")), path


def test_an_architecture_is_one_file() -> None:
    """Beside which only `convert` knows it, and tokenizers, some kinds of which have the same names."""
    rooms = {"models", "huggingface", "text", "__pycache__"}
    others = [p for p in (ROOT / "fabric").rglob("*.py") if p.parent.name not in rooms]
    for name in architectures():
        for path in others:
            assert f'"{name}"' not in path.read_text(encoding="utf-8"), f"{path} knows {name} by name"


def test_every_architecture_stands_in_the_parity_tests() -> None:
    pytest.importorskip("gguf", reason="the small models of the parity tests are written by the gguf package")
    from tests.support.shapes import SMALL

    assert sorted(SMALL) == architectures()
    rows = (ROOT / "tests/parity/architectures.py").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"(\w+)": Architecture\(', rows)) == architectures()
