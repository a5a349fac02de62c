"""A run directory may be a stranger's: what it says is checked, and nothing outside it is written for its sake."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import DataError
from fabric.training.checkpoint import newest_checkpoint
from fabric.training.resume import resume
from fabric.training.settings import RunSettings, Silent
from tests.cli.shell import Ended, fabric, one_sentence

RUN = ("--steps", "4", "--rank", "2", "--ctx", "64", "--batch", "4", "--checkpoint-every", "1")
NEWEST = "step-00000004.ckpt"


@pytest.fixture(scope="module")
def made(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run that wrote `a.gguf` and `m.jsonl`."""
    folder = tmp_path_factory.mktemp("made")
    files = ["-o", "a.gguf", "--metrics", "m.jsonl", "--run-dir", "run"]
    done = fabric("train", rows, "-m", tiny, *files, *RUN, cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def sealed(head: object, body: bytes) -> bytes:
    """A checkpoint whose digest is right."""
    line = head if isinstance(head, bytes) else json.dumps(head).encode() + b"\n"
    return line + body + hashlib.sha256(line + body).digest()


Edit = Callable[[dict[str, Any]], object]
HEADS: dict[str, Edit] = {
    "no step": lambda head: head.pop("step"),
    "a step that is a text": lambda head: head.update(step="4"),
    "a step that is true": lambda head: head.update(step=True),
    "another step": lambda head: head.update(step=3),
    "a negative step": lambda head: head.update(step=-4),
    "no size": lambda head: head.pop("n"),
    "a size that is a text": lambda head: head.update(n="x"),
    "a huge size": lambda head: head.update(n=10**30),
    "another size": lambda head: head.update(n=head["n"] - 16),
    "nine arrays": lambda head: head.update(arrays=9),
    "no arrays": lambda head: head.update(arrays=0),
    "no totals": lambda head: head.pop("totals"),
    "totals in a list": lambda head: head.update(totals=[1]),
    "a total that is not there": lambda head: head["totals"].pop("loss"),
    "a total too many": lambda head: head["totals"].update(colour=1),
    "a total that is a text": lambda head: head["totals"].update(loss="low"),
    "half a token": lambda head: head["totals"].update(tokens=1.5),
    "tokens below none": lambda head: head["totals"].update(tokens=-1),
    "a loss that is no number": lambda head: head["totals"].update(loss=float("nan")),
    "a time without end": lambda head: head["totals"].update(seconds=float("inf")),
    "a validation to come": lambda head: head["totals"].update(validated=5),
    "a key that nobody knows": lambda head: head.update(momentum=0.9),
}


def test_a_whole_checkpoint_with_a_false_head_is_refused(run: Path) -> None:
    line, _, rest = (run / NEWEST).read_bytes().partition(b"\n")
    for what, edit in HEADS.items():
        head = json.loads(line)
        edit(head)
        (run / NEWEST).write_bytes(sealed(head, rest[:-32]))
        with pytest.raises(DataError, match=r"not a checkpoint of this run: .*remove it"):
            found = newest_checkpoint(run)
            assert found is not None, what
            found.checked_totals()
        if what in ("no step", "another step", "a total that is a text"):
            one_sentence(fabric("resume", run, "-q"), 65, NEWEST, "not a checkpoint of this run", "remove it")


def test_a_whole_checkpoint_of_another_kind_is_refused(run: Path) -> None:
    line, _, rest = (run / NEWEST).read_bytes().partition(b"\n")
    head = json.loads(line)
    alone = {**head, "arrays": 1}  # AdamW has three: its moments would be zeros
    bodies = {
        "not JSON": sealed(b"{\n", rest[:-32]),
        "no object": sealed([1], rest[:-32]),
        "deep": sealed(b"[" * 60_000 + b"\n", b""),
        "no line": sealed(b"x" * 100_000, b""),
        "one array": sealed(alone, rest[: head["n"] * 4]),
        "empty": sealed({**head, "n": 0}, b""),
        "no numbers": sealed(head, b"\xff" * (len(rest) - 32)),
    }
    for what, data in bodies.items():
        (run / NEWEST).write_bytes(data)
        if what in ("one array", "empty", "no numbers"):  # which only the model tells from a good one
            one_sentence(fabric("resume", run, "-q"), 65, NEWEST, "remove it")
            continue
        with pytest.raises(DataError, match="remove it"):
            newest_checkpoint(run)
    (run / NEWEST).unlink()
    assert fabric("resume", run, "-q").code == 0, "the one before is as good as ever"


def test_a_damaged_checkpoint_that_is_passed_over_is_named(run: Path) -> None:
    (run / NEWEST).write_bytes((run / NEWEST).read_bytes()[:-1])
    one_sentence(
        fabric("resume", run, "-q", "--strict", "-o", run / "x", "--metrics", run / "y"), 65, NEWEST, "damaged"
    )
    told = fabric("resume", run)
    assert told.code == 0 and f"{NEWEST} is cut or damaged" in told.err


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("link", "metrics.jsonl"), ("link", "adapter.gguf"), ("link", "lock"), ("link", "run.json"), ("link", NEWEST),
        ("fifo", "step-99999999.ckpt"), ("fifo", "lock"), ("fifo", "metrics.jsonl"), ("fifo", "run.json"),
        ("folder", "best.ckpt"),
    ],
)  # fmt: skip
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(kind: str, name: str, run: Path) -> None:
    victim, place = run.parent / "victim", run / name
    content = place.read_bytes() if place.exists() else b"mine\n"
    victim.write_bytes(content)
    place.unlink(missing_ok=True)
    {"link": lambda: place.symlink_to(victim), "fifo": lambda: os.mkfifo(place), "folder": place.mkdir}[kind]()
    ended = fabric("resume", run, timeout=20)
    one_sentence(ended, 66 if (kind, name) == ("fifo", "run.json") else 65, name)
    assert victim.read_bytes() == content


def forged(run: Path, edit: Edit, fitted: bool = True) -> None:
    """Edits the settings in run.json; a forger who knows how fits the fingerprints to them."""
    path = run / "run.json"
    values = json.loads(path.read_text())
    edit(values["settings"])
    if fitted:
        with contextlib.suppress(DataError):
            values["fingerprints"] = RunSettings.from_json(values["settings"]).fingerprints()
    path.write_text(json.dumps(values))


SETTINGS: dict[str, Edit] = {
    "threads": lambda s: s.update(threads="x"),
    "many threads": lambda s: s.update(threads=1 << 40),
    "keep": lambda s: s.update(keep=0),
    "epochs": lambda s: s.update(epochs=float("nan")),
    "seed": lambda s: s.update(seed=-1),
    "modules": lambda s: s.update(modules=["attn_q", 7]),
    "val": lambda s: s.update(val=7),
    "data": lambda s: s.update(data=None),
    "a NUL": lambda s: s.update(output="a\0b"),
    "half a pair": lambda s: s.update(device="\ud800"),
    "a schedule": lambda s: s.update(schedule=["cosine"]),
    "colour": lambda s: s.update(colour="red"),
    "nothing": lambda s: s.clear(),
}


def test_settings_that_no_run_has_are_refused_before_they_are_used(run: Path) -> None:
    before = (run / "run.json").read_text()
    for what, edit in SETTINGS.items():
        forged(run, edit)
        with pytest.raises(DataError, match=r"run\.json: not the settings of a run"):
            resume(str(run), Silent())
        if what in ("threads", "modules", "a NUL"):
            one_sentence(fabric("resume", run, "-q"), 65, "run.json")
        (run / "run.json").write_text(before)


def test_a_run_json_that_is_none_is_refused(run: Path) -> None:
    path = run / "run.json"
    whole = json.loads(path.read_text())
    cases: list[object] = [
        [],
        {**whole, "data_sha256": None},
        {**whole, "model_sha256": "x"},
        {key: value for key, value in whole.items() if key != "data_sha256"},
        {**whole, "val_sha256": 7},
        {**whole, "settings": []},
        {**whole, "colour": "red"},
        {**whole, "extended": [[0, 1.0, None]]},
        {**whole, "extended": [["x", 1.0, None]]},
        {**whole, "extended": [7]},
    ]
    texts = ["[" * 100_000, " " * (1 << 21), '{"settings": ' + "9" * 5000 + "}"]
    for text in [*map(json.dumps, cases), *texts]:
        path.write_text(text)
        with pytest.raises(DataError, match=r"run\.json: not the settings of a run"):
            resume(str(run), Silent())
    path.write_text(json.dumps({**whole, "data_sha256": None}))
    one_sentence(fabric("resume", run, "-q"), 65, "run.json", "data_sha256")


def test_outputs_that_were_changed_in_run_json_are_named(made: Path, tmp_path: Path) -> None:
    run, victim = made / "run", tmp_path / "victim"
    before = (run / "run.json").read_text()
    victim.write_text("mine\n")
    for name in ("output", "metrics"):
        forged(run, lambda s, name=name: s.update({name: str(victim)}), fitted=False)  # type: ignore[misc]
        one_sentence(fabric("resume", run), 65, f"({name})")
        (run / "run.json").write_text(before)
    assert victim.read_text() == "mine\n"


def test_a_copied_run_directory_writes_to_nothing_outside_itself(run: Path) -> None:
    victims = {name: run.parent / name for name in ("output", "metrics")}
    for name, victim in victims.items():
        victim.write_text("mine\n")
        forged(run, lambda s, name=name, victim=victim: s.update({name: str(victim)}))  # type: ignore[misc]
    (run / NEWEST).unlink()
    ended = fabric("resume", run)
    assert ended.code == 0, ended.err
    assert all(victim.read_text() == "mine\n" for victim in victims.values())
    assert "--output says where" in ended.err and "--metrics says where" in ended.err
    assert f"the adapter goes to {run / 'adapter.gguf'}" in ended.err
    one_sentence(fabric("resume", run, "--strict"), 65, "not made here")
    again = fabric("resume", run, "-o", victims["output"], "--metrics", victims["metrics"])
    assert again.code == 0 and "not made here" not in again.err
    assert victims["output"].read_bytes() == (run / "adapter.gguf").read_bytes()


def told_steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_moved_run_directory_writes_where_it_was_told(made: Path, tmp_path: Path) -> None:
    whole = (made / "a.gguf").read_bytes()
    (made / "a.gguf").unlink()
    (made / "run").rename(made / "moved")
    (made / "moved" / NEWEST).rename(tmp_path / NEWEST)
    ended = fabric("resume", made / "moved")
    (made / "moved").rename(made / "run")
    assert ended.code == 0, ended.err
    assert (made / "a.gguf").read_bytes() == whole
    assert told_steps(made / "m.jsonl") == [1, 2, 3, 4]


def test_a_new_run_replaces_nothing_that_no_run_has_made(tiny: Path, rows: Path, tmp_path: Path) -> None:
    mine = {name: tmp_path / name for name in ("data.jsonl", "adapter.gguf", "metrics.jsonl")}

    def train(*data: str, stdin: bytes = b"") -> Ended:
        return fabric("train", *data, "-m", tiny, "--run-dir", ".", *RUN, cwd=tmp_path, stdin=stdin)

    for path in mine.values():
        path.write_bytes(rows.read_bytes())
        one_sentence(train("-", stdin=b"{}\n"), 2, path.name, "choose another --run-dir")
        assert path.read_bytes() == rows.read_bytes()
        path.unlink()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    (tmp_path / "notes").write_text("mine\n")
    one_sentence(train("bad.jsonl"), 65, "bad.jsonl:1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "notes"]
