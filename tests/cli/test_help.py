"""What someone who has just installed the command sees, and how quickly."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.cli.app import COMMANDS
from tests.cli.shell import Ended, environment, fabric, one_sentence
from tests.support.paths import REPOSITORY

# What `--help` may import besides the standard library.
LIGHT = {"click", "typer", "shellingham", "annotated_doc", "fabric"}
FABRIC_LIGHT = {"fabric", "fabric.errors", "fabric.printable", "fabric.cli", "fabric.settings"}
ROOMS = {f"fabric.{room}" for room in ("data", "text", "weights", "training", "evaluation", "generation")}
FABRIC_LIGHT |= {"fabric.notices", "fabric.system", "fabric.training.dealing"}  # the standard library alone
FABRIC_LIGHT |= ROOMS | {f"{room}.settings" for room in ROOMS}  # the rooms are empty but for what is declared there

IMPORTED = """
import json, sys
from fabric.cli.app import run
run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; sys.path[:] = " + repr(sys.path) + IMPORTED, *arguments],
        capture_output=True, env=environment(), check=True,
    )  # fmt: skip
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_comes_at_once_because_nothing_heavy_is_imported(arguments: list[str]) -> None:
    modules = imported(*arguments)
    tops = {name.split(".")[0] for name in modules}
    foreign = {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_")}
    assert foreign <= LIGHT
    own = {name for name in modules if name.split(".")[0] == "fabric"}
    assert all(name in FABRIC_LIGHT or name.startswith("fabric.cli.") for name in own), own


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str) -> None:
    told = fabric(name, "--help")
    assert told.code == 0
    text = told.out.decode()
    assert f"Usage: fabric {name}" in text
    assert "Examples:" in text and f"fabric {name}" in text.split("Examples:")[1]
    for flag in ("--quiet", "--json", "--debug"):
        assert flag in text


def test_the_same_flag_means_the_same_everywhere() -> None:
    from fabric.cli.app import load

    meanings: dict[str, set[object]] = {}
    for name in COMMANDS:
        for option in load(name).params:
            for flag in option.opts:
                if flag.startswith("-"):
                    metavar = (option.metavar or "").partition("[")[0]
                    meanings.setdefault(flag, set()).add((option.type.name, metavar))
    assert {flag: names for flag, names in meanings.items() if len(names) > 1} == {}


def test_a_typo_is_answered_with_the_nearest_name() -> None:
    one_sentence(fabric("trian"), 2, "'trian'", "'train'")
    one_sentence(fabric("plot", "--outptu", "x"), 2, "--outptu", "--output")
    one_sentence(fabric("train", "x", "-m", "y", "--schedule", "cosin"), 2, "cosin", "Did you mean 'cosine'")


def test_no_arguments_show_the_commands() -> None:
    told = fabric()
    assert told.code == 2
    assert "quantize" in told.err


def test_version_is_told() -> None:
    assert fabric("--version").out.startswith(b"fabric ")


def test_shell_completions_man_pages_and_the_command_page_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/pages.py", "--check"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_help_is_a_command_too() -> None:
    assert fabric("help", "train").out == fabric("train", "--help").out
    assert fabric("help").out == fabric("--help").out
    one_sentence(fabric("help", "trian"), 2, "'train'")


def test_completions_are_printed_as_they_are_installed() -> None:
    names = {"bash": "fabric.bash", "zsh": "_fabric", "fish": "fabric.fish", "powershell": "fabric.ps1"}
    for shell, name in names.items():
        told = fabric("completion", shell)
        assert told.code == 0 and told.out == (REPOSITORY / "completions" / name).read_bytes()


def test_powershell_gets_every_command_and_flag() -> None:
    """No PowerShell reads it here: all commands and flags are there, strings end, and what opens closes."""
    text = (REPOSITORY / "completions/fabric.ps1").read_text()
    table = text[text.index("Register-ArgumentCompleter") :]
    bare = re.sub(r"'(?:[^']|'')*'", "", table)
    assert "'" not in bare
    for opening, closing in ("()", "{}", "[]"):
        assert bare.count(opening) == bare.count(closing), opening
    assert all(f"        '{name}' = @(\n" in table for name in COMMANDS)
    for name in ("train", "convert"):
        flags = re.findall(r"(?m)^  (?:-\w, )?(--[\w-]+)", fabric(name, "--help").out.decode())
        assert len(flags) > 5 and all(f"'{flag}'" in table for flag in flags), name


def test_a_wheel_brings_man_pages_and_completions(tmp_path: Path) -> None:
    code = f"import setuptools, sys; sys.argv = ['setup.py', '-q', 'install_data', '-d', {str(tmp_path)!r}]"
    run = "import runpy; runpy.run_path('setup.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", f"{code}; {run}"], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    share = tmp_path / "share"
    assert {path.name for path in (share / "man/man1").iterdir()} >= {f"fabric-{name}.1" for name in COMMANDS}
    assert (share / "man/man5/fabric.toml.5").exists()
    for place in ("bash-completion/completions/fabric.bash", "zsh/site-functions/_fabric",
                  "fish/vendor_completions.d/fabric.fish"):  # fmt: skip
        assert (share / place).exists(), place


def complete(line: str) -> list[str]:
    words = line.split(" ")
    script = (
        f"source completions/fabric.bash; COMP_WORDS=({' '.join(repr(w) for w in words)}); "
        f"COMP_CWORD={len(words) - 1}; _fabric; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, check=True)
    return done.stdout.decode().split()


def test_bash_completes_commands_flags_values_and_files() -> None:
    assert complete("fabric qu") == ["quantize"]
    assert "--warmup-ratio" in complete("fabric train --w")
    assert complete("fabric train --schedule co") == ["constant", "cosine"]
    assert "README.md" in complete("fabric prepare REA")


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_man_pages_are_well_formed() -> None:
    for page in (REPOSITORY / "man").glob("*.[15]"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", str(page)], capture_output=True, check=False)
        assert Ended(done.returncode, b"", done.stderr.decode()) == Ended(0, b"", "")
