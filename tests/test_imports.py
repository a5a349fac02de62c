"""Rooms lean on those below them: what is imported, wherever in a file, never leads back."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "fabric"
# From the lowest up; a room may import those before it.
ROOMS = (
    "errors", "system", "printable", "interrupts", "notices", "settings", "fields", "partials", "files", "runs",
    "tracking", "kinds", "core", "distributed", "data", "plotting", "mapping", "weights", "text", "models",
    "huggingface", "devices", "generation", "training", "calibration", "evaluation", "reporting", "cli",
)  # fmt: skip


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def _imports() -> dict[str, set[str]]:
    """Modules of fabric by module that imports them."""
    sources = {_module(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in sources.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {one if one in sources else node.module for one in inner}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
    return {name: {one for one in imported if one.split(".")[0] == "fabric"} for name, imported in found.items()}


def _room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_rooms_import_only_those_below_them() -> None:
    upwards = {
        (module, one) for module, imported in _imports().items() for one in imported
        if _room(module) in ROOMS and _room(one) and ROOMS.index(_room(module)) < ROOMS.index(_room(one))
    }  # fmt: skip
    assert upwards == set()
    assert {_room(module) for module in _imports()} - {"", "__main__"} <= set(ROOMS)


def test_no_module_below_the_commands_imports_itself_through_others() -> None:
    graph = {name: {one for one in imported if one != "fabric"} for name, imported in _imports().items()}
    below = {name: imported for name, imported in graph.items() if _room(name) != "cli" and name != "fabric.__main__"}
    list(TopologicalSorter(below).static_order())  # raises CycleError, which names the circle


def test_only_the_core_touches_the_native_library() -> None:
    users = {
        path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")
        if re.search(r"import _native|_native import|import cffi|cffi import", path.read_text())
    }  # fmt: skip
    assert users == {"core"}
