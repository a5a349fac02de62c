"""Fills in the recipes of packaging/ for a release: its version, its source package and what that hashes to.

python tools/recipes.py dist/fabric_llm-1.2.3.tar.gz FOLDER
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ROOT / "packaging"
TYPER = "0.25.1"


def files() -> list[Path]:
    """The recipes, as they lie in packaging/."""
    return sorted(path for path in PACKAGING.rglob("*") if path.is_file())


def project() -> str:
    """pyproject.toml, as text."""
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def requirements() -> list[str]:
    """What a build and a run need, as pip writes it, but for what only an older Python needs."""
    found: list[str] = re.findall(r'"([^"]+)"', re.findall(r"(?s)\ndependencies = \[(.*?)\]\n", project())[0])
    return [one for one in found if ";" not in one]


def archives(requirements: list[str], *more: str) -> list[dict[str, str]]:
    """What pip would install, with what that needs itself: name, version, address and SHA-256 of each."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        *more,
    ]
    report = subprocess.run([*command, *requirements], check=True, capture_output=True, text=True).stdout
    return [
        {
            "name": one["metadata"]["name"].lower().replace("_", "-"), "version": one["metadata"]["version"],
            "url": one["download_info"]["url"], "sha256": one["download_info"]["archive_info"]["hashes"]["sha256"],
        }
        for one in json.loads(report)["install"]
    ]  # fmt: skip


def resources() -> str:
    """The Python packages of the formula, each as its source package, but for those that Homebrew has itself."""
    wanted = [one for one in archives(requirements()) if one["name"] != "numpy"]
    blocks = []
    for one in sorted(wanted, key=lambda one: one["name"]):
        (source,) = archives([f"{one['name']}=={one['version']}"], "--no-deps", "--no-binary", one["name"])
        blocks.append(
            f'  resource "{one["name"]}" do\n    url "{source["url"]}"\n    sha256 "{source["sha256"]}"\n  end\n'
        )
    return "\n".join(blocks)


def values(sdist: Path) -> dict[str, str]:
    """What stands in place of each @NAME@, but for those that PyPI has to be asked for."""
    version = re.fullmatch(r"fabric_llm-(.+)\.tar\.gz", sdist.name)
    if version is None:
        sys.exit(f"{sdist.name}: a source package is called fabric_llm-VERSION.tar.gz")
    return {
        "VERSION": version[1],
        "SHA256": hashlib.sha256(sdist.read_bytes()).hexdigest(),
        "URL": f"https://files.pythonhosted.org/packages/source/f/fabric-llm/{sdist.name}",
        "TARGET_DEPS": ", ".join(f"'{one}'" for one in requirements() if not one.startswith("numpy")),
    }


def filled(text: str, given: dict[str, str]) -> str:
    """A recipe with the values in place; nothing else of it looks like @NAME@."""
    return re.sub(r"@([A-Z][A-Z0-9_]+)@", lambda found: given[found[1]], text)


def main() -> None:
    """Writes all of them into a folder."""
    sdist, folder = Path(sys.argv[1]), Path(sys.argv[2])
    given = values(sdist)
    given["RESOURCES"] = resources()
    for name, kind in {"TYPER_SHA256": "--only-binary", "TYPER_SOURCE_SHA256": "--no-binary"}.items():
        given[name] = archives([f"typer=={TYPER}"], "--no-deps", kind, "typer")[0]["sha256"]
    for path in files():
        target = folder / path.relative_to(PACKAGING)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(filled(path.read_text(encoding="utf-8"), given), encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
