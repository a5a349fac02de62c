"""fabric: fine-tune GGUF language models on the device they will run on.

`train`, `evaluate`, `generate` and `merge` are what the commands of these names call, on the same settings objects; see
docs/python.md. Each is imported when it is asked for, so that the command's --help stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric.evaluation.evaluate import evaluate
    from fabric.evaluation.settings import EvalReport, EvalSettings
    from fabric.generation.generate import generate
    from fabric.generation.settings import GenerateSettings
    from fabric.training.run import train
    from fabric.training.settings import TrainReport, TrainSettings, TrainUI
    from fabric.weights.merge import merge
    from fabric.weights.settings import AdapterInput, MergeSettings, WriteResult

__version__ = "0.1.0"

__all__ = [
    "AdapterInput",
    "EvalReport",
    "EvalSettings",
    "GenerateSettings",
    "MergeSettings",
    "TrainReport",
    "TrainSettings",
    "TrainUI",
    "WriteResult",
    "__version__",
    "evaluate",
    "generate",
    "merge",
    "train",
]
_PLACES = {
    "evaluation.evaluate": ("evaluate",),
    "evaluation.settings": ("EvalReport", "EvalSettings"),
    "generation.generate": ("generate",),
    "generation.settings": ("GenerateSettings",),
    "training.run": ("train",),
    "training.settings": ("TrainReport", "TrainSettings", "TrainUI"),
    "weights.merge": ("merge",),
    "weights.settings": ("AdapterInput", "MergeSettings", "WriteResult"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"fabric.{module}"), name)
    raise AttributeError(f"module 'fabric' has no attribute {name!r}")
