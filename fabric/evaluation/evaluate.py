"""`eval`: loss and perplexity of rows, and labelled accuracy by likelihood, of a base with and without adapters."""

from __future__ import annotations

from fabric.evaluation.settings import EvalReport, EvalSettings
from fabric.weights.settings import Progress


def evaluate(settings: EvalSettings, progress: Progress | None = None) -> EvalReport:
    """Scores a model on records. `progress`: called with (tokens done, tokens in all)."""
    raise NotImplementedError
