"""What a run needs to go on: inputs that came through a pipe, from any folder, and only if nothing has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import fabric, one_sentence, shell

RUN = ("--steps", "4", "--rank", "2", "--ctx", "64", "--batch", "4")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("flag", ["DATA", "--val", "--adapter", "--template"])
def test_what_came_through_a_pipe_is_there_to_resume(
    flag: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    piped = {"--adapter": adapter.read_bytes(), "--template": TEMPLATE.encode()}.get(flag, rows.read_bytes())
    where = ["-"] if flag == "DATA" else [str(rows), flag, "-"]
    done = fabric("train", *where, "-m", tiny, "-o", "a.gguf", "--run-dir", "run", *RUN, stdin=piped, cwd=tmp_path)
    assert done.code == 0, done.err
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").unlink()
    for newer in (tmp_path / "run").glob("step-*4.ckpt"):
        newer.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = (tmp_path / "run").rename(elsewhere / "moved")
    resumed = fabric("resume", moved.name, cwd=elsewhere)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "a.gguf").read_bytes() == whole


def test_equal_runs_can_start_together(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = f"fabric train {rows} -m {tiny} -q {' '.join(RUN)}"
    ended = shell(f"{line} & {line} & {line} & wait", tmp_path)
    assert ended.err == ""
    assert len(list((tmp_path / ".fabric" / "runs").glob("*/adapter.gguf"))) == 3


@pytest.fixture
def ended(tiny: Path, rows: Path, tmp_path: Path) -> Path:
    """A run directory beside its own data and model."""
    (tmp_path / "rows.jsonl").write_bytes(rows.read_bytes())
    (tmp_path / "base.gguf").write_bytes(tiny.read_bytes())
    done = fabric("train", "rows.jsonl", "-m", "base.gguf", "--run-dir", "run", *RUN, cwd=tmp_path)
    assert done.code == 0, done.err
    return tmp_path


def test_a_changed_input_is_named(ended: Path) -> None:
    rows, base = ended / "rows.jsonl", ended / "base.gguf"
    before = rows.read_bytes()
    rows.write_bytes(before + before)
    one_sentence(fabric("resume", ended / "run"), 65, "data has changed")
    rows.write_bytes(before)
    content = bytearray(base.read_bytes())
    content[-100] ^= 1
    base.write_bytes(content)
    one_sentence(fabric("resume", ended / "run"), 65, "model has changed")
    base.unlink()
    one_sentence(fabric("resume", ended / "run"), 66, "base.gguf")


def test_changed_rows_of_validation_and_templates_are_named(tiny: Path, rows: Path, tmp_path: Path) -> None:
    texts = {"val": rows.read_text(), "template": TEMPLATE}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    files = ["--val", "val", "--template", "template"]
    assert fabric("train", rows, "-m", tiny, *files, "--run-dir", "run", *RUN, cwd=tmp_path).code == 0
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "\n")
        one_sentence(fabric("resume", "run", cwd=tmp_path), 65, f"the {name} has changed")
        (tmp_path / name).write_text(text)
    assert fabric("resume", "run", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 1e-3), ("rank", 8), ("rank", "x"), ("seed", None), ("modules", 7), ("colour", "red")]
)
def test_changed_settings_are_refused(key: str, value: object, ended: Path) -> None:
    path = ended / "run" / "run.json"
    run = json.loads(path.read_text())
    run["settings"][key] = value
    path.write_text(json.dumps(run))
    one_sentence(fabric("resume", ended / "run"), 65, "run.json", "settings")


def test_every_changed_setting_is_named(ended: Path) -> None:
    path = ended / "run" / "run.json"
    run = json.loads(path.read_text())
    run["settings"] |= {"lr": 1e-3, "dropout": 0.5, "threads": 1, "keep": 7}
    path.write_text(json.dumps(run))
    one_sentence(fabric("resume", ended / "run"), 65, "(dropout, lr)")
    del run["fingerprints"]
    path.write_text(json.dumps(run))
    one_sentence(fabric("resume", ended / "run"), 65, "settings")


def test_a_run_whose_disk_filled_up_goes_on_to_the_same_bits(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = f"fabric train {rows} -m {tiny} -o a.gguf -q --checkpoint-every 1 {' '.join(RUN)} --rank 4 --run-dir"
    assert shell(f"{line} whole", tmp_path).code == 0
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").unlink()
    size = (tmp_path / "whole" / "step-00000004.ckpt").stat().st_size // 1024
    for blocks in (size // 2, size - 1):  # the limit is of each file, as where a disk has so much left
        full = shell(f"ulimit -f {blocks}; {line} full-{blocks}", tmp_path)
        one_sentence(full, 74, ".ckpt", "too large", f"fabric resume full-{blocks}")
        assert not list((tmp_path / f"full-{blocks}").glob("*.ckpt*")) and not (tmp_path / "a.gguf").exists()
        again = shell(f"ulimit -f {blocks}; fabric resume -q full-{blocks}", tmp_path)
        one_sentence(again, 74, ".ckpt")
        assert shell(f"fabric resume -q full-{blocks}", tmp_path).code == 0
        assert (tmp_path / "a.gguf").read_bytes() == whole
        (tmp_path / "a.gguf").unlink()
