"""Every example through the command that its first lines name, on a small random model and two steps a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the small models are written by the gguf package")

from tests.cli.shell import environment
from tests.support.paths import REPOSITORY
from tests.support.random_models import write_model
from tests.support.shapes import PRESETS, SMALL

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of random weights."""
    return write_model(tmp_path_factory.mktemp("model") / "base.gguf", PRESETS["tiny"], "Q8_0")


def run(folder: Path, *command: str | Path, **settings: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command from elsewhere, with `fabric` on the path; skips where a tool of it is missing."""
    found = environment({name: str(value) for name, value in settings.items()})
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found["PATH"]])
    for tool in (str(command[0]), "jq", "fabric"):
        if shutil.which(tool, path=found["PATH"]) is None:
            pytest.skip(f"{tool} is not installed")
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=found, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def lines(path: Path) -> list[Mapping[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_tour_of_the_readme_runs_as_it_stands(model: Path, tmp_path: Path) -> None:
    """Every line of it, with the defaults that it is about."""
    tour = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## A tour")[1].split("```")[1]
    script = tour.removeprefix("sh\n")
    assert script.count("\n") == 10 and all(line.startswith("fabric ") for line in script.splitlines())
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "base.gguf").symlink_to(model)
    done = run(tmp_path, "bash", "-ec", "set -o pipefail\n" + script)
    assert "train" in done.stdout and "merge" in done.stdout and "quantize" in done.stdout
    for line in ("lr 1e-3: LoRA", "epochs 3: 240 rows", "batch 4: 240 rows", "ctx 512: the longest row has"):
        assert line in done.stderr
    assert not re.search(r" --(?:lr|epochs|steps|batch|ctx|rank|alpha)\b", script)


def test_the_pipeline_goes_from_rows_to_a_tuned_model_and_the_pipe_does_too(model: Path, tmp_path: Path) -> None:
    justfile, settings = EXAMPLES / "pipeline" / "Justfile", {"MODEL": model, "OUT": tmp_path / "out", "STEPS": "2"}
    done = run(tmp_path, "just", "-f", justfile, "all", **settings)
    assert "loss per trained token" in done.stdout and '"quantize"' in done.stdout
    run(tmp_path, "just", "-f", justfile, "pipe", **settings)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tuned.gguf", "piped.gguf", "metrics.svg", "score.md"} <= made
    assert "all " in run(tmp_path, "just", "-f", justfile, **settings).stdout


def test_make_does_again_only_what_has_changed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [f"MODEL={model}", f"OUT={out}", "STEPS=2"]
    make = ("make", "--no-print-directory", "-C", EXAMPLES / "incremental")
    assert "fabric train" in run(tmp_path, *make, *settings).stdout
    assert "perplexity" in json.loads((out / "report.json").read_text())
    assert "fabric" not in run(tmp_path, *make, *settings).stdout
    changed = run(tmp_path, *make, *settings, "TRAIN=--rank 4").stdout
    assert "--rank 4" in changed and "fabric quantize" in changed and "fabric prepare" not in changed
    (out / "report.json").unlink()
    scored = run(tmp_path, *make, *settings, "TRAIN=--rank 4").stdout
    assert "fabric eval" in scored and "fabric train" not in scored


def test_the_phone_s_script_trains_and_goes_on_after_a_stop(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the quick", "completion": " fox"}\n' * 8)
    script, adapter = EXAMPLES / "termux" / "tune", tmp_path / "a.gguf"
    tools = tmp_path / "bin"  # as Termux has them
    tools.mkdir()
    for name, text in (("wake-lock", "echo locked >> $LOG"), ("wake-unlock", "echo unlocked >> $LOG"),
                       ("battery-status", 'echo "{\\"percentage\\": ${LEFT:-80}}"')):  # fmt: skip
        (tools / f"termux-{name}").write_text(f"#!/bin/sh\n{text}\n")
        (tools / f"termux-{name}").chmod(0o755)
    found = {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": tmp_path / "log", "STEPS": "2", "CTX": "64"}
    run(tmp_path, script, model, rows, adapter, **found)
    first = adapter.read_bytes()
    assert (tmp_path / "log").read_text().split() == ["locked", "unlocked"]
    adapter.unlink()
    run(tmp_path, script, model, rows, adapter, **found)
    assert adapter.read_bytes() == first
    with pytest.raises(AssertionError, match="battery is at 9 %"):
        run(tmp_path, script, model, rows, adapter, LEFT="9", **found)


def test_the_phone_installs_what_it_lacks_once_and_finds_the_command_again(tmp_path: Path) -> None:
    script, tools, prefix = EXAMPLES / "termux" / "install", tmp_path / "bin", tmp_path / "usr"
    for folder in (tools, prefix / "bin"):
        folder.mkdir(parents=True)
    made = tmp_path / ".fabric" / "bin"
    texts = {
        "pkg": 'echo "pkg $*" >> $HOME/log',
        "python": f'echo "python $*" >> $HOME/log; mkdir -p {made}; ln -s {tools}/pip {made}/python',
        "pip": f'echo "pip $*" >> $HOME/log; cp {tools}/made {made}/fabric',
        "made": "echo cpu",
    }
    for name, text in texts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    phone = {"PATH": f"{prefix}/bin:{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "PREFIX": str(prefix)}

    def install(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script], env=env, capture_output=True, text=True, check=False)

    for _ in range(2):
        done = install(phone)
        assert (done.returncode, done.stdout) == (0, "cpu\n"), done
    assert (tmp_path / "log").read_text().splitlines() == [
        "pkg install -y clang python python-numpy libffi glslang",
        f"python -m venv --system-site-packages {tmp_path}/.fabric",
        f"pip -m pip install --quiet {EXAMPLES.parent}",
    ]
    (made / "fabric").write_text("#!/bin/sh\nexit 1\n")
    assert install(phone).returncode == 70
    elsewhere = install({**phone, "PATH": "/usr/bin:/bin"})
    assert elsewhere.returncode == 69 and "this is no Termux" in elsewhere.stderr


def test_style_transfer_shows_three_samples_before_and_after(model: Path, tmp_path: Path) -> None:
    done = run(tmp_path, EXAMPLES / "style" / "run", MODEL=model, OUT=tmp_path / "out", STEPS="2")
    shown = done.stdout.splitlines()
    held = len(lines(EXAMPLES / "style" / "data" / "held.jsonl"))
    assert sum(line.startswith("  written  ") for line in shown) == held
    assert sum(line.startswith("  after    ") for line in shown) == 3 * held
    assert "Rope in propeller. Cleared, 1 h." in done.stdout and "against the base" in done.stdout


def test_the_biomedical_study_picks_on_validation_and_reports_on_test_rows(model: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for split, count in (("train", 24), ("validation", 6)):
        rows = [{"question": f"Is {i} odd?", "label": label, "rationale_src": f"{label}, {i} it is.", "text": "unused"}
                for i in range(count) for label in ("Yes", "No", "Uncertain")]  # fmt: skip
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = write_model(tmp_path / "gemma3.gguf", SMALL["gemma3"], "Q8_0")
    study = ("just", "-f", EXAMPLES / "biomedical" / "Justfile", "study")
    settings = {"DATA": data, "OUT": out, "STEPS": "2", "RANKS": "2", "RATES": "1e-4 1e-2", "SEEDS": "1 2"}
    done = run(tmp_path, *study, SMOLLM2=model, GEMMA3=other, **settings)
    tests, trains = lines(out / "test.finding.jsonl"), lines(out / "train.finding.jsonl")
    assert (len(tests), len(trains)) == (18, 54)
    asked = [{str(row["messages"]) for row in rows} for rows in (tests, trains)]
    assert not asked[0] & asked[1]
    assert all("Finding: " in row for row in asked[0])
    assert not any("Finding" in str(row["messages"]) for row in lines(out / "train.question.jsonl"))
    for name in ("smollm2", "gemma3"):
        runs = [json.loads(path.read_text()) for path in out.glob(f"{name}-finding-*-s1.json")]
        best = min(runs, key=lambda found: found["val_loss"])
        assert len(runs) == 2
        assert (out / f"{name}-finding-r2-lr{best['rate']}-s2.gguf").exists(), "what was picked has no second seed"
        assert (out / f"{name}-question-r2-lr{best['rate']}-s1.gguf").exists()
    assert "question and finding" in done.stdout and "(90 of 90)" in done.stdout  # labels stand in these findings
    report = (out / "report.md").read_text()
    assert report == done.stdout[-len(report) :]
    assert report.count("## ") == 4 and report.count("95 % interval") == 8 and report.count("commonest label") == 4
    again = run(tmp_path, *study, SMOLLM2=model, GEMMA3=other, **settings)
    assert "fabric train" not in again.stderr


def test_the_study_trains_and_scores_each_line_of_a_plan_once(model: Path, tmp_path: Path) -> None:
    data, plan, script = tmp_path / "data", tmp_path / "plan", EXAMPLES / "study" / "run"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [{"question": f"Is {i} odd?", "label": ["Yes", "No"][i % 2], "rationale_src": "So it is."}
                for i in range(8)]  # fmt: skip
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan.write_text(
        "# two of eight rows, by two seeds, then all weights\n\nsmollm2 biomedical:4 --rank 2 --seed 1\n"
        "smollm2 biomedical:4 --rank 2 --seed 2\ngemma3 style --full --lr 1e-4\n"
    )
    settings = {"SMOLLM2": model, "GEMMA3": model, "BIOMEDICAL": data, "OUT": tmp_path / "out", "STEPS": "1"}
    command = f"{script} < {plan}"
    done = run(tmp_path, "bash", "-ec", command, **settings, JOBS="2")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[:4] for row in table] == [
        ["gemma3", "style", "--full --lr 1e-4", "1"], ["smollm2", "biomedical:4", "--rank 2", "2"],
    ]  # fmt: skip
    assert all(float(row[4]) > 0 for row in table) and [bool(row[6]) for row in table] == [False, True]
    assert len(lines(tmp_path / "out/rows/biomedical:4/train.jsonl")) == 2
    assert run(tmp_path, "bash", "-ec", command, **settings).stdout == done.stdout
    planned = run(tmp_path, EXAMPLES / "study" / "plan", SEEDS="1", MODELS="smollm2").stdout.splitlines()
    assert len(planned) == len(set(planned)) == 75 and all(line.startswith("smollm2 ") for line in planned)
