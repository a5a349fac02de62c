"""The trackers: what each is called, which package it needs, and how a run begins, continues and ends in it.

Their accounts, servers, projects and folders are configured as their own documentation says; nothing of it is here.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fabric.errors import DeviceError
from fabric.printable import shortened
from fabric.runs.directory import EVENTS

PROJECT = "fabric"  # of runs for which the user's own configuration names none
_MOST_CHARS = 300  # of an error of a package
_MLFLOW_BATCH = 100  # parameters of a request
_MLFLOW_CHARS = 500  # of a parameter


@dataclass(frozen=True)
class Tracked:
    """A run as trackers know it."""

    name: str
    key: str
    """The same when the run is resumed; no other run has it."""
    directory: Path
    step: int
    """The steps that were done before."""
    settings: Mapping[str, Any]
    """With what the run began on: names and numbers, no paths."""


class Tracker(Protocol):
    """One open run of one tracker. Anything may be raised."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step."""

    def close(self, done: bool) -> None:
        """No more will come; `done` where the run came to its end."""

    def place(self) -> str:
        """Where to look."""


class TensorBoard:
    """Event files in the run directory, by tensorboardX."""

    def __init__(self, run: Tracked) -> None:
        import tensorboardX  # noqa: F401  (what is wrong with it is said before the run begins)

        self.run = run
        self.writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The files begin with the first step, so that a run that never comes to it leaves none."""
        from tensorboardX import SummaryWriter

        if self.writer is None:
            purge = self.run.step + 1 if self.run.step else None
            self.writer = SummaryWriter(self.place(), purge_step=purge, flush_secs=10)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, done: bool) -> None:
        """The files are whole."""
        if self.writer is not None:
            self.writer.close()

    def place(self) -> str:
        """The folder that `tensorboard --logdir` takes."""
        return str(self.run.directory / EVENTS)


class WeightsAndBiases:
    """A run of Weights & Biases; what this process prints and the code beside it stay here."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self.run = wandb.init(
            project=wandb.setup().settings.project or PROJECT, id=run.key, name=run.name, config=dict(run.settings),
            resume="allow" if run.step else None,
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Handed to wandb's own process."""
        self.run.log(dict(values), step=step)

    def close(self, done: bool) -> None:
        """Waits until everything is sent."""
        self.run.finish(exit_code=0 if done else 1)

    def place(self) -> str:
        """Its page, or its folder where it is offline."""
        return str(self.run.dir if self.run.offline else self.run.url)


class MLflow:
    """A run of MLflow, found again by a tag."""

    def __init__(self, run: Tracked) -> None:
        from mlflow.entities import Param
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        name = MLFLOW_EXPERIMENT_NAME.get() or PROJECT
        experiment = self.client.get_experiment_by_name(name)
        id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        found = self.client.search_runs([id], f"tags.fabric_run = '{run.key}'", max_results=1) if run.step else []
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(id, run_name=run.name, tags={"fabric_run": run.key}).info.run_id
        params = [Param(key, str(value)[:_MLFLOW_CHARS]) for key, value in run.settings.items()]
        for at in range(0, len(params), _MLFLOW_BATCH):
            self.client.log_batch(self.id, params=params[at : at + _MLFLOW_BATCH])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, done: bool) -> None:
        """The run has a state."""
        self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")

    def place(self) -> str:
        """The run, and the store that it is in."""
        return f"run {self.id} in {self.client.tracking_uri}"


class Kind(NamedTuple):
    """A tracker that there is."""

    open: Callable[[Tracked], Tracker]
    module: str
    hint: str
    """What to do where it does not begin."""


KINDS = {
    "tensorboard": Kind(TensorBoard, "tensorboardX", "install the package anew"),
    "wandb": Kind(WeightsAndBiases, "wandb", "WANDB_MODE=offline keeps it on this machine"),
    "mlflow": Kind(MLflow, "mlflow", "MLFLOW_TRACKING_URI names the server"),
}


def check_trackers(names: Sequence[str]) -> None:
    """DeviceError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(KINDS[name].module) is None:
            raise DeviceError(f"--track {name} needs a package that is not installed: pip install 'fabric-llm[{name}]'")


def begin(name: str, run: Tracked) -> Tracker:
    """A run in a tracker. DeviceError where that fails."""
    try:
        return KINDS[name].open(run)
    except Exception as error:
        raise DeviceError(f"--track {name}: {why(error)}; {KINDS[name].hint}, or leave it out") from error


def why(error: Exception) -> str:
    """An error of a package in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0] if lines else type(error).__name__, _MOST_CHARS).rstrip(".")
