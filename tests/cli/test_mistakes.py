"""One thing given for another, and names from other tools: one sentence says which it is and what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fabric.cli.app import load
from fabric.cli.foreign import HERE, hint
from tests.cli.shell import fabric, one_sentence
from tests.support.paths import REPOSITORY


def test_an_adapter_and_a_model_in_each_others_place_are_told_where_they_go(
    tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    for line in (
        ["train", rows, "-m", adapter],
        ["eval", rows, "-m", adapter],
        ["generate", "-m", adapter, "--prompt", "x"],
        ["template", rows, "-m", adapter],
        ["merge", "-m", adapter, "-a", adapter, "-o", "x"],
        ["bench", "-m", adapter],
    ):
        one_sentence(fabric(*line, cwd=tmp_path), 65, "adapter.gguf", "an adapter, where a model is expected", "-a")
    for line in (["eval", rows, "-m", tiny, "-a", tiny], ["train", rows, "-m", tiny, "-a", tiny]):
        one_sentence(fabric(*line, cwd=tmp_path), 65, "tiny.gguf", "not a LoRA adapter but a model", "-m")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_is_told_with_the_way_to_one(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    run, hub, peft, other = (tmp_path / name for name in ("run", "hub", "peft", "other"))
    line = ["--steps", "1", "--rank", "2", "--ctx", "64", "--run-dir", run, "-q"]
    assert fabric("train", rows, "-m", tiny, *line).code == 0
    for folder in (hub, peft, other):
        folder.mkdir()
    (hub / "config.json").write_text("{}")
    weights = hub / "model.safetensors"
    weights.write_bytes((2).to_bytes(8, "little") + b"{}" + b"\0" * 8)
    (peft / "adapter_config.json").write_text("{}")
    (other / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "x.bin").write_bytes(b"PK\3\4" + b"\0" * 26 + b"x/data.pkl")
    for path, words in (
        (run, ["the directory of a run", f"its result is {run / 'adapter.gguf'}"]),
        (hub, ["a Hugging Face folder", f"`fabric convert {hub} -o base.gguf`"]),
        (peft, ["a PEFT adapter", f"`fabric convert {peft} -m base.gguf -o adapter.gguf`"]),
        (other, ["a folder", "name a file in it: a.gguf"]),
        (weights, ["a safetensors file", f"`fabric convert {hub}`"]),
        (tmp_path / "x.bin", ["a PyTorch file", "`fabric convert"]),
    ):
        one_sentence(fabric("generate", "-m", path, "--prompt", "x"), 65, str(path), "where a GGUF file is", *words)
    one_sentence(fabric("eval", rows, "-m", tiny, "-a", run), 65, "the directory of a run", "adapter.gguf")
    for name in ("run", "resume"):
        path = other if name == "run" else adapter
        one_sentence(fabric("resume", path), 66, str(path), "is not the directory of a run", "`fabric runs`")
    one_sentence(fabric("plot", other), 66, str(other))


def test_what_holds_no_rows_is_told_with_what_to_do(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for line in (
        ["train", tiny, "-m", tiny],
        ["eval", tiny, "-m", tiny],
        ["prepare", tiny],
        ["train", rows, "-m", tiny, "--val", tiny],
    ):
        one_sentence(fabric(*line, cwd=tmp_path), 65, "tiny.gguf is a GGUF file, where rows are expected", "-m")
    one_sentence(fabric("train", rows.parent, "-m", tiny, cwd=tmp_path), 65, "a folder", "rows.jsonl")
    (tmp_path / "notes.txt").write_text("Some notes.\nMore of them.\n")
    one_sentence(fabric("train", "notes.txt", "-m", tiny, cwd=tmp_path), 65, "notes.txt:1", "`fabric prepare`")
    for command in ("plot", "report"):
        one_sentence(fabric(command, tiny, cwd=tmp_path), 65, "tiny.gguf is a GGUF file, where metrics are expected")
    for flags in (["--device", "foo"], ["--probe", "--full"]):
        one_sentence(fabric("devices", *flags), 2, flags[-1] if flags[-1] != "foo" else "--device", "belongs to")
    told = fabric("generate", "Which line serves Wrenmoor?", "-m", tiny, cwd=tmp_path)
    one_sentence(told, 66, "'Which line serves Wrenmoor?'", "--prompt")
    told = fabric("generate", "-m", tiny, "--prompt", "notes.txt", "--max-tokens", "2", cwd=tmp_path)
    assert told.code == 0 and "--prompt notes.txt: this name is the prompt" in told.err


def test_flags_of_other_trainers_are_named_as_ours(tiny: Path, rows: Path, tmp_path: Path) -> None:
    train = ["train", rows, "-m", tiny]
    for typed, words in {
        "--learning-rate 1e-4": ["--learning-rate is --lr here"],
        "--learning_rate=1e-4": ["--learning_rate is --lr here"],
        "--lora-r 8": ["--rank"],
        "--max-seq-length 512": ["--ctx"],
        "--gradient-accumulation-steps 4": ["--batch"],
        "--iters 100": ["--steps"],
        "--target-modules q_proj,v_proj": ["--modules attn_q,attn_v"],
        "--target-modules=all-linear": ["--modules all"],
        "--modules q_proj": ["q_proj is called attn_q"],
    }.items():
        one_sentence(fabric(*train, *typed.split(), cwd=tmp_path), 2, *words)
    assert fabric(*train, "--warmup-ratio", "0.1", "--dry-run", cwd=tmp_path).code == 0, "it is ours too"
    (tmp_path / "fabric.toml").write_text("[train]\nlearning_rate = 1e-4\n")
    one_sentence(fabric(*train, cwd=tmp_path), 2, "fabric.toml:2", "is --lr here")


def test_every_name_of_the_table_for_those_who_come_from_elsewhere_has_a_hint() -> None:
    ours = {flag[2:] for param in load("train").params for flag in param.opts}
    assert HERE.keys() <= ours, "each stands for a flag that there is"
    page = (REPOSITORY / "docs" / "coming-from.md").read_text()
    rows = re.findall(r"(?m)^\| `--[^|]*\|(.*)\|$", page)
    names = {name for row in rows for name in re.findall(r"`(?:--)?([a-z][a-z_-]{3,})`", row)}
    own = {name for name in names if name.replace("_", "-") in ours}
    without = {name for name in names - own if hint(f"--{name}") is None}
    assert len(names) > 30 and without <= {"train_test_split", "optimizer_config", "adapter"}, without


def test_a_device_that_is_not_here_is_refused_with_those_that_are(tiny: Path, rows: Path, tmp_path: Path) -> None:
    for device in ("gpu", "cuda:7"):
        told = fabric("train", rows, "-m", tiny, "--device", device, cwd=tmp_path)
        one_sentence(told, 69, "the devices here are: cpu (")
    there = [one["device"] for one in json.loads(fabric("devices", "--json").out)["devices"]]
    assert all(f"{name} (" in told.err for name in there), told.err
