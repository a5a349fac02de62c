"""The recipes of packaging/: each names what the package needs, and is what its own tool reads, where that is here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
from recipes import PACKAGING, TYPER, files, filled, requirements, values

RESOURCE = '  resource "cffi" do\n    url "https://files.pythonhosted.org/x.tar.gz"\n    sha256 "e"\n  end\n'
CHECKS = {
    "aur/PKGBUILD": [["bash", "-n"], ["makepkg", "--printsrcinfo", "-p"]],
    "conda/recipe.yaml": [],
    "homebrew/fabric-llm.rb": [["ruby", "-wc"]],
    "nix/flake.nix": [["nix-instantiate", "--parse"]],
    "termux/build.sh": [["bash", "-n"]],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, filled in for a source package."""
    folder = tmp_path_factory.mktemp("recipes")
    sdist = folder / "fabric_llm-1.2.3.tar.gz"
    sdist.write_bytes(b"a source package")
    given = {**values(sdist), "RESOURCES": RESOURCE, "TYPER_SHA256": "d" * 64, "TYPER_SOURCE_SHA256": "c" * 64}
    for path in files():
        target = folder / path.relative_to(PACKAGING)
        target.parent.mkdir(exist_ok=True)
        target.write_text(filled(path.read_text(), given))
    return folder


def test_each_recipe_has_the_version_the_hash_and_all_that_the_package_needs(made: Path) -> None:
    assert {str(path.relative_to(PACKAGING)) for path in files()} == set(CHECKS)
    assert f"typer=={TYPER}" in requirements()
    for name in CHECKS:
        text = (made / name).read_text()
        assert "1.2.3" in text and not re.search(r"@[A-Z_0-9]+@", text), name
        assert values(made / "fabric_llm-1.2.3.tar.gz")["SHA256"] in text, name
        if not name.startswith("homebrew"):  # its resources are asked for when it is filled in
            for need in requirements():
                package, version = re.split(r"[=<>,]+", need)[:2]
                package = {"jinja2": "(jinja2|python-jinja)"}.get(package, package)
                assert re.search(rf"\b{package}\b", text), (name, need)
                if name.startswith(("conda", "aur")) and "typer" not in need:
                    assert re.search(rf"{package}\W*>=\s*{re.escape(version)}", text), (name, need)
    assert TYPER in (made / "aur/PKGBUILD").read_text() and TYPER in (made / "nix/flake.nix").read_text()
    assert "typer ==" + TYPER in (made / "conda/recipe.yaml").read_text()


@pytest.mark.parametrize("name", CHECKS)
def test_a_recipe_is_what_its_own_tool_reads(name: str, made: Path) -> None:
    if name.startswith("conda"):
        stage0 = pytest.importorskip(
            "rattler_build", reason="tools of package managers: py-rattler-build is not installed"
        ).Stage0Recipe
        recipe = stage0.from_yaml((made / name).read_text()).to_dict()
        assert recipe["package"]["name"] == "fabric-llm"
        return
    missing = []
    for command in CHECKS[name]:
        if not shutil.which(command[0]):
            missing.append(command[0])
            continue
        ahead = ["setpriv", "--reuid=65534", "--clear-groups", "env", "PACMAN=true"] if command[0] == "makepkg" else []
        with tempfile.TemporaryDirectory() as place:  # for everybody, as makepkg does not run for root
            Path(place).chmod(0o777)
            recipe = shutil.copy(made / name, place)
            done = subprocess.run([*ahead, *command, recipe], capture_output=True, text=True, check=False, cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
        if command[0] == "makepkg":
            assert "pkgver = 1.2.3" in done.stdout and "depends = python-cffi>=1.16" in done.stdout
    if missing:
        pytest.skip(f"tools of package managers: {' and '.join(missing)} not installed")
