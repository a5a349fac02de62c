"""A setting is declared once: a new one is a line where it is declared, and all else follows."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fabric.cli.app import COMMANDS, load
from fabric.cli.flags import setting_of
from fabric.errors import UsageError
from fabric.settings import check, declared
from fabric.training.settings import BenchSettings, TrainSettings
from tests.cli.shell import Ended, environment, fabric, one_sentence
from tests.support.paths import REPOSITORY

MADE_UP = "    lr: Annotated[float | None, RATE]"
LINE = '    frobs: Annotated[int, Setting("frobs per knob", "N", low=2, high=9)] = 3\n'


@pytest.fixture(scope="module")
def with_frobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with one line more."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "fabric", copy / "fabric", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tools", "docs", "man", "completions"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    place = copy / "fabric/training/settings.py"
    text = place.read_text()
    assert text.count(MADE_UP) == 1
    place.write_text(text.replace(MADE_UP, LINE + MADE_UP))
    return copy


def test_a_made_up_setting_is_one_line(with_frobs: Path, tiny: Path, rows: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path, **env: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "fabric", *map(str, arguments)], cwd=tmp_path, check=False, capture_output=True,
            env={**environment(env), "PYTHONPATH": str(with_frobs)}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr.decode())

    def kept(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / name / "run.json").read_text())
        return found

    told = " ".join(run("train", "--help").out.decode().split())
    assert "--frobs N frobs per knob [default: 3; 2<=x<=9]" in told
    one_sentence(run("train", rows, "-m", tiny, "--frobs", "10"), 2, "--frobs", "2<=x<=9")
    one_sentence(run("train", rows, "-m", tiny, FABRIC_FROBS="x"), 2, "FABRIC_FROBS")
    train = ("train", rows, "-m", tiny, "--steps", "1", "--rank", "2", "--ctx", "64", "--batch", "2")
    (tmp_path / "fabric.toml").write_text("[train]\nfrobs = 4\n")
    (tmp_path / "run.toml").write_text("frobs = 5\n")
    for name, flags, env, value in (
        ("file", [], {}, 4),
        ("config", ["--config", "run.toml"], {}, 5),
        ("environment", ["--config", "run.toml"], {"FABRIC_FROBS": "6"}, 6),
        ("flag", ["--config", "run.toml", "--frobs", "7"], {"FABRIC_FROBS": "6"}, 7),
    ):
        ended = run(*train, "--run-dir", name, *flags, **env)
        assert ended.code == 0, ended.err
        assert kept(name)["settings"]["frobs"] == value
    assert kept("file")["fingerprints"]["frobs"] != kept("flag")["fingerprints"]["frobs"]
    history = json.loads(run("inspect", tmp_path / "flag/adapter.gguf", "--json").out)["history"]
    assert history[-1]["settings"]["frobs"] == 7
    pages = subprocess.run(
        [sys.executable, with_frobs / "tools/pages.py", "--check"], capture_output=True, check=False,
        env={**environment(), "PYTHONPATH": str(with_frobs)},
    )  # fmt: skip
    for page in ("man/fabric-train.1", "docs/commands.md", "completions/fabric.bash"):
        assert page in pages.stderr.decode()


def test_what_is_known_of_a_setting_is_written_in_one_file() -> None:
    written: Counter[str] = Counter()
    for path in sorted((REPOSITORY / "fabric").rglob("*.py")):
        texts = {
            node.value for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }  # fmt: skip
        written.update(texts)
    helps = {setting_of(param).help for name in COMMANDS for param in load(name).params}
    fixed = {text for text in helps if len(text) > 12 and "; default: as the run began" not in text}
    assert len(fixed) > 90
    assert {text: written[text] for text in fixed if written[text] != 1} == {}
    for path in (REPOSITORY / "fabric/cli").glob("*.py"):
        assert "typer.Option" not in path.read_text() or path.name == "flags.py"


def test_every_field_of_settings_is_declared() -> None:
    assert set(get_type_hints(TrainSettings)) - {one.name for one in declared(TrainSettings)} == {"micro_batch"}
    assert {one.name: one.default for one in declared(BenchSettings)}["rank"] == TrainSettings.rank


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"dropout": 1.0}, {"rank": 1.5}, {"schedule": "cosin"}]
)
def test_ranges_hold_also_where_no_flag_was_typed(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
        check(TrainSettings("rows.jsonl", "m.gguf", **wrong))


def test_settings_of_the_other_kind_are_refused_where_typed_and_left_where_a_file_has_them(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    train = ("train", rows, "-m", tiny, "--steps", "1", "--ctx", "64", "--batch", "2", "--run-dir")
    (tmp_path / "fabric.toml").write_text("[train]\ndropout = 0.1\ntype = 'f16'\n")
    one_sentence(fabric(*train, "a", "--full", "--dropout", "0.2", cwd=tmp_path), 2, "--dropout", "LoRA")
    one_sentence(fabric(*train, "a", "--type", "f16", cwd=tmp_path), 2, "--type", "--full")
    for name, flags, dropout, type in (("full", ["--full"], 0.0, "f16"), ("lora", [], 0.1, None)):
        ended = fabric(*train, name, *flags, cwd=tmp_path)
        assert ended.code == 0, ended.err
        kept = json.loads((tmp_path / name / "run.json").read_text())["settings"]
        assert (kept["dropout"], kept["type"]) == (dropout, type)
