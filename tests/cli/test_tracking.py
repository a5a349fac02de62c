"""`train --track`: what trackers get of a run, and that a run needs none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import Ended, fabric, one_sentence
from tests.support.paths import REPOSITORY

# Stand-ins for the packages: they write what they are given, and fail where they are asked to.
LOG = """
import json, os
def log(*what):
    if what[0] == os.environ.get("FAILS"):
        raise ConnectionError("the network is down\\nat line 7")
    with open(os.environ["LOG"], "a") as file:
        file.write(json.dumps(what) + "\\n")
"""
WANDB = """
from standin_log import log
class settings: project = None
class setup:
    settings = settings
def Settings(**values): return values
class Run:
    dir, offline = "offline-run", True
    def log(self, values, step): log("log", step, values)
    def finish(self, exit_code): print("a line of theirs"); log("finish", exit_code)
def init(**values):
    log("init", values)
    print("a greeting of theirs")
    return Run()
"""
MLFLOW = {
    "__init__": "",
    "entities": """
def Param(key, value): return [key, value]
def Metric(key, value, timestamp, step): return [key, value, step]
""",
    "environment_variables": """
class MLFLOW_EXPERIMENT_NAME:
    get = staticmethod(lambda: None)
""",
    "tracking": """
from standin_log import log
class Named:
    def __init__(self, id): self.experiment_id = self.run_id = id; self.info = self
class MlflowClient:
    tracking_uri = "file:runs"
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): log("experiment", name); return "7"
    def create_run(self, id, run_name, tags): log("run", id, run_name, tags); return Named("r1")
    def search_runs(self, ids, query, max_results): log("search", query); return [Named("r1")]
    def update_run(self, id, status): log("status", id, status)
    def log_batch(self, id, params=(), metrics=()): log("batch", id, len(params), metrics)
    def set_terminated(self, id, status): log("end", id, status)
""",
}
TRAIN = ("--ctx", "64", "--batch", "4", "--rank", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages called wandb and mlflow."""
    folder = tmp_path_factory.mktemp("standins")
    (folder / "standin_log.py").write_text(LOG)
    (folder / "wandb.py").write_text(WANDB)
    (folder / "mlflow").mkdir()
    for name, text in MLFLOW.items():
        (folder / "mlflow" / f"{name}.py").write_text(text)
    return folder


def tracked(folder: Path, standins: Path, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Ended:
    path = f"{standins}:{REPOSITORY}"
    return fabric(*arguments, cwd=folder, env={"PYTHONPATH": path, "LOG": str(folder / "log"), **(env or {})})


def logged(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_trackers_get_settings_and_metrics_of_a_run_and_of_what_resumes_it(
    standins: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    train = ("train", rows, "-m", tiny, *TRAIN, "--run-dir", "run", "--steps", "3", "--val", "0.2", "-o", "-")
    done = tracked(tmp_path, standins, *train, "--track", "wandb,mlflow")
    assert done.code == 0 and done.out.startswith(b"GGUF") and b"of theirs" not in done.out, done.err
    assert "wandb: offline-run" in done.err and "mlflow: run r1 in file:runs" in done.err
    kept = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    told = logged(tmp_path)
    begun = next(one[1] for one in told if one[0] == "init")
    assert begun["project"] == "fabric" and begun["name"] == "run" and begun["resume"] is None
    assert begun["config"]["rank"] == 2 and begun["settings"]["console"] == "off"
    assert str(tmp_path) not in json.dumps(told) and str(rows) not in json.dumps(told)  # no file of the user's
    sent = {step: values for kind, step, values in (one for one in told if one[0] == "log")}
    assert (
        sent == {one["step"]: {k: v for k, v in one.items() if k != "step"} for one in kept} and "val_loss" in sent[3]
    )
    batches = [one[3] for one in told if one[0] == "batch" and one[3]]
    assert [{name: value for name, value, _ in one} for one in batches] == list(sent.values())
    assert ["finish", 0] in told and ["end", "r1", "FINISHED"] in told

    (tmp_path / "log").unlink()
    done = tracked(tmp_path, standins, "resume", "run", "--steps", "4", "-o", "a.gguf")
    assert done.code == 0, done.err
    again = logged(tmp_path)
    assert next(one[1]["id"] for one in again if one[0] == "init") == begun["id"]
    assert ["status", "r1", "RUNNING"] in again and not any(one[0] == "run" for one in again)
    assert [one[1] for one in again if one[0] == "log"] == [4]

    (tmp_path / "log").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "moved").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    done = tracked(tmp_path, standins, "resume", "copy", "--steps", "5", "-o", "a.gguf")
    assert done.code == 0 and "wandb, mlflow get no metrics" in done.err and not (tmp_path / "log").exists()
    done = tracked(tmp_path, standins, "resume", "moved", "--steps", "5", "--track", "none", "-o", "a.gguf")
    assert done.code == 0 and not (tmp_path / "log").exists()


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_is_one_line_and_stops_nothing(
    fails: str, standins: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    train = ("train", rows, "-m", tiny, *TRAIN, "--run-dir", "run", "--steps", "3")
    done = tracked(tmp_path, standins, *train, "--track", "wandb,mlflow", env={"FAILS": fails})
    assert done.code == 0 and (tmp_path / "run/adapter.gguf").exists(), done.err
    lines = [line for line in done.err.splitlines() if "does not track" in line]
    assert len(lines) == 1 and "wandb" in lines[0] and "the network is down" in lines[0] and "line 7" not in lines[0]
    assert ["end", "r1", "FINISHED"] in logged(tmp_path)


def test_what_is_missing_is_said_before_anything_is_trained(
    standins: Path, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    train = ("train", rows, "-m", tiny, *TRAIN, "--steps", "3", "--run-dir", "run", "-q")
    (tmp_path / "none").mkdir()
    block = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: n != 'wandb' and f(n, *a) or None"
    (tmp_path / "none/sitecustomize.py").write_text(block)
    done = tracked(tmp_path, tmp_path / "none", *train, "--track", "wandb")
    one_sentence(done, 69, "wandb", "pip install 'fabric-llm[wandb]'")
    one_sentence(tracked(tmp_path, standins, *train, "--track", "wandb", env={"FAILS": "init"}), 69, "network is down")
    one_sentence(tracked(tmp_path, standins, *train, "--track", "wandbb"), 2, "'wandbb'", "'wandb'")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_it_is_given(tiny: Path, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    run = tmp_path / "run"
    (tmp_path / "torch.py").write_text("raise ImportError")  # which tensorboardX loads where it is installed, slowly
    train = ("train", rows, "-m", tiny, *TRAIN, "--run-dir", run, "--steps", "3", "--track", "tensorboard")
    assert tracked(tmp_path, tmp_path, *train).code == 0
    done = tracked(tmp_path, tmp_path, "resume", run, "--steps", "5", "-o", "a.gguf")
    assert done.code == 0 and str(run / "tensorboard") in done.err
    found = reader.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "lr"):
        assert [(one.step, one.value) for one in found.Scalars(name)] == [
            (row["step"], pytest.approx(row[name], rel=1e-6)) for row in kept
        ]
    assert fabric("runs", "--prune", run).code == 0 and not run.exists()
