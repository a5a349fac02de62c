"""Where a default comes from: flag, environment, project file, user file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabric.cli.app import COMMANDS, load
from fabric.cli.config import defaults
from fabric.cli.flags import setting_of
from fabric.errors import UsageError
from tests.cli.shell import fabric, one_sentence, shell


def metrics(folder: Path) -> Path:
    path = folder / "run.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 3 - i / 10, "lr": 0.1}) + "\n" for i in range(1, 20)))
    return path


def lines(folder: Path, *arguments: str, **env: str) -> int:
    told = fabric("plot", metrics(folder), *arguments, env=env, cwd=folder)
    assert told.code == 0, told.err
    return len(told.out.splitlines())


def test_flag_beats_environment_beats_project_beats_user(tmp_path: Path) -> None:
    user = tmp_path / "config" / "fabric"
    user.mkdir(parents=True)
    (user / "config.toml").write_text("[plot]\nheight = 12\n")
    xdg = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    by_user = lines(tmp_path, **xdg)
    (tmp_path / "fabric.toml").write_text("height = 16\nthreads = 2\n[train]\nwarmup_ratio = 0.2\n")
    by_project = lines(tmp_path, **xdg)
    by_environment = lines(tmp_path, **xdg, FABRIC_HEIGHT="24")
    by_flag = lines(tmp_path, "--height", "32", **xdg, FABRIC_HEIGHT="24")
    assert [by_project - by_user, by_environment - by_project, by_flag - by_environment] == [4, 8, 8]


def test_a_file_of_train_stands_between_environment_and_project(tiny: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "fabric.toml").write_text("[train]\nrank = 2\nctx = 40\nalpha = 3\n")
    (tmp_path / "run.toml").write_text("rank = 3\nlora-plus = 2\nctx = 41\nsteps = 2\n")
    env = {"FABRIC_LORA_PLUS": "4"}
    command = ("train", rows, "-m", tiny, "--config", "run.toml", "--run-dir", "run", "--ctx", "42")
    ended = fabric(*command, env=env, cwd=tmp_path)
    assert ended.code == 0, ended.err
    told = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert {name: told[name] for name in ("rank", "lora_plus", "ctx", "alpha", "steps")} == {
        "rank": 3, "lora_plus": 4.0, "ctx": 42, "alpha": 3.0, "steps": 2,
    }  # fmt: skip
    one_sentence(fabric("train", "--config", "no.toml", cwd=tmp_path), 66, "no.toml")
    (tmp_path / "run.toml").write_text("rank = 3\n\n# rates\nlearning-rate = 1\nlr_mni = 2\n")
    one_sentence(fabric("train", "--config=run.toml", cwd=tmp_path), 2, "run.toml:4", "learning-rate")
    (tmp_path / "run.toml").write_text("rank = 3\n\n[train]\nlr_mni = 2\n")
    one_sentence(fabric("train", "--config=run.toml", cwd=tmp_path), 2, "run.toml:4", "'lr-min'")


def test_a_bad_default_is_told_with_the_place_it_came_from(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    one_sentence(fabric("plot", run, env={"FABRIC_HEIGHT": "tall"}), 2, "tall", "FABRIC_HEIGHT")
    for value in ("'tall'", "12.9", "true", "2020-01-01", "0x" + "f" * 5000):
        (tmp_path / "fabric.toml").write_text(f"title = 'a run'\nheight = {value}\n")
        one_sentence(fabric("plot", run, cwd=tmp_path), 2, "fabric.toml:2: height")
    (tmp_path / "fabric.toml").write_text("schedule = 'cosin'\n")
    one_sentence(fabric("plot", run, cwd=tmp_path), 2, "fabric.toml:1: schedule", "'cosine'")


def test_what_a_file_says_is_checked_where_it_is_overridden_and_of_other_commands(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    (tmp_path / "fabric.toml").write_text("[plot]\nheight = 'tall'\n")
    for flags, env in (([], {"FABRIC_HEIGHT": "30"}), (["--height", "30"], {})):
        one_sentence(fabric("plot", run, *flags, env=env, cwd=tmp_path), 2, "fabric.toml:2: height")
    one_sentence(fabric("plot", run, "--height", "30", env={"FABRIC_HEIGHT": "tall"}), 2, "FABRIC_HEIGHT: 'tall'")
    for text, said in (("rank = 'x'", "'x'"), ("rnak = 8", "'rank'"), ("config = 'x.toml'", "only the command line")):
        (tmp_path / "fabric.toml").write_text(f"[train]\n{text}\n")
        one_sentence(fabric("plot", run, cwd=tmp_path), 2, "fabric.toml:2", said)
        assert fabric("plot", "--help", cwd=tmp_path).code == 0


def test_a_typo_in_the_environment_is_refused_and_a_foreign_variable_told(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    one_sentence(fabric("plot", run, env={"FABRIC_RNAK": "8"}), 2, "FABRIC_RNAK", "FABRIC_RANK")
    told = fabric("plot", run, env={"FABRIC_LEARNING_RATE": "1", "FABRIC_RANK": "8"})
    assert told.code == 0
    assert told.err == "fabric plot: FABRIC_LEARNING_RATE: no flag is called so, and it is ignored\n"
    assert fabric("plot", run, "-q", env={"FABRIC_LEARNING_RATE": "1"}).err == ""


WRITTEN_OR_READ = {  # lines of a file, and the flag or operand that is refused
    "model = 'base.gguf'": "model",
    "data = 'rows.jsonl'": "data",
    "template = 'x'": "template",
    "val = 'VICTIM'": "val",
    "[train]\noutput = 'VICTIM'": "output",
    "[train]\nmetrics = 'VICTIM'": "metrics",
    "[train]\nrun-dir = '/'": "run-dir",
    "[train]\ndry-run = true": "dry-run",
    "[prepare]\nholdout = ['VICTIM=0.5']": "holdout",
    "[eval]\nrows = 'VICTIM'": "rows",
    "[quantize]\nsave-imatrix = 'VICTIM'": "save-imatrix",
    "probe = true": "probe",
    "chat = true": "chat",
    "[generate]\nprompt = 'x'": "prompt",
    "[resume]\nepochs = 9": "epochs",
}


def test_a_folder_decides_nothing_that_is_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"text": "$(id)"}\n')
    monkeypatch.chdir(folder)
    for text, flag in WRITTEN_OR_READ.items():
        Path("fabric.toml").write_text(f"{text.replace('VICTIM', str(victim))}\n")
        said = f"fabric.toml:{1 + text.count(chr(10))}: {flag}: only the command line"
        with pytest.raises(UsageError, match=said):
            defaults(load("prepare"), [])
        if flag in ("model", "output", "holdout"):
            refused = fabric("prepare", "rows.jsonl", cwd=folder)
            one_sentence(refused, 2, said)
            assert refused.out == b""
    assert victim.read_text() == "mine\n"


def test_no_flag_that_names_a_file_has_a_default_from_afar() -> None:
    paths = {"output", "model", "adapter", "template", "metrics", "run-dir", "config", "imatrix", "calibrate", "rows"}
    found = {max(p.opts, key=len)[2:] for name in COMMANDS for p in load(name).params if setting_of(p).path}
    assert paths <= found


def test_the_environment_decides_nothing_that_is_read_or_written(tiny: Path, tmp_path: Path) -> None:
    for variable in ("FABRIC_MODEL", "FABRIC_OUTPUT", "FABRIC_CONFIG", "FABRIC_DRY_RUN", "FABRIC_VAL"):
        refused = fabric("train", "x", "-m", tiny, env={variable: "1x"}, cwd=tmp_path)
        one_sentence(refused, 2, f"{variable}: only the command line")
    told = fabric("inspect", tiny, env={"FABRIC_OTHER": "x"})
    assert told.code == 0 and told.err == "fabric inspect: FABRIC_OTHER: no flag is called so, and it is ignored\n"


def test_a_pipe_is_read_whatever_a_file_says(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    merged = f"fabric merge -m {tiny} -a {adapter}"
    assert shell(f"{merged} | fabric quantize -o whole.gguf", tmp_path).code == 0
    (tmp_path / "base.gguf").write_bytes(tiny.read_bytes())
    for text in ("model = 'base.gguf'", "[quantize]\nmodel = 'base.gguf'", "[merge]\nadapter = ['x']"):
        (tmp_path / "fabric.toml").write_text(f"{text}\n")
        ended = shell(f"{merged} | fabric quantize -o out.gguf", tmp_path)
        assert ended.code == 2 and ended.err.count("only the command line") == 2, ended.err
        assert not (tmp_path / "out.gguf").exists()
    (tmp_path / "fabric.toml").write_text("threads = 1\n[quantize]\ntype = 'q8_0'\n")
    assert shell(f"{merged} | fabric quantize -o out.gguf", tmp_path).code == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_options_of_one_command_are_not_those_of_another_of_the_same_name(ended_run: Path) -> None:
    (ended_run / "fabric.toml").write_text("epochs = 7\nsteps = 9\n[train]\nval = 0.5\n")
    resumed = fabric("resume", "run", cwd=ended_run, env={"FABRIC_EPOCHS": "8"})
    assert resumed.code == 0 and "going on" not in resumed.err


@pytest.fixture
def ended_run(tiny: Path, rows: Path, tmp_path: Path) -> Path:
    """A folder with a run of two steps."""
    flags = ["--run-dir", "run", "--steps", "2", "--rank", "2", "--ctx", "64", "--batch", "4"]
    assert fabric("train", rows, "-m", tiny, *flags, cwd=tmp_path).code == 0
    return tmp_path


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    with (tmp_path / "fabric.toml").open("wb") as file:
        file.truncate(1 << 30)
    one_sentence(fabric("plot", run, cwd=tmp_path), 2, "fabric.toml", "more than 1 MiB")


def test_a_typo_in_a_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    for text, near in (("heigth = 3", "height"), ("[plto]\nheight = 3", "plot"), ("[plot]\nheigth = 3", "height")):
        (tmp_path / "fabric.toml").write_text(text)
        one_sentence(fabric("plot", run, cwd=tmp_path), 2, "fabric.toml", f"'{near}'")


def test_any_bytes_as_a_configuration_file_end_in_a_sentence(tmp_path: Path) -> None:
    run = metrics(tmp_path)
    for content in (b"\xff\xfe", b"[[[", b"a = " + b"[" * 5000, b"height = {a = 1}", b"height = [1, 2]", b"\x00"):
        (tmp_path / "fabric.toml").write_bytes(content)
        one_sentence(fabric("plot", run, cwd=tmp_path), 2, "fabric.toml")
