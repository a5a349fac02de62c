"""Near-ties: labels so close that rounding decides between them, and the accuracy that hangs on it.

The noise is that of the difference between two labels' scores. In 16-bit precision it is measured: labels of up to
MOST_MEASURED rows, spread evenly, are scored again in f32, and twice the root mean square of what the difference of the
two best moved by is the noise: about 95 % of rows move less. In f32, where nothing more exact is there to measure
against, it is F32_ERROR of the score, the bound within which logits agree with PyTorch's in 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fabric.evaluation.labels import LabelTest
from fabric.evaluation.scoring import Choice, Done, Loras, costs
from fabric.evaluation.settings import NearTies
from fabric.generation.model import Model

MOST_MEASURED = 64
F32_ERROR = 1e-5

Costs = Sequence[Sequence[float]]
Table = npt.NDArray[np.float64]  # (rows, labels): negative log likelihoods


def measured(choices: Sequence[Choice], precision: str) -> range:
    """The numbers of the rows whose labels are scored again."""
    return range(0, 0 if precision == "f32" else len(choices), -(-len(choices) // MOST_MEASURED))


def near_ties(model: Model, loras: Loras, test: LabelTest, scores: Costs, capacity: int, done: Done) -> NearTies:
    """How many rows have labels within the noise of the best one, from the negative log likelihoods of all labels."""
    rows, table = measured(test.choices, model.precision), np.array(scores)
    noise = F32_ERROR * float(table.max())
    if rows:
        exact = costs(replace(model, precision="f32"), loras, [test.choices[i] for i in rows], capacity, done)
        noise = max(noise, spread(table[list(rows)], np.array(exact)))
    return ties_within(noise, len(rows), test, table)


def ties_within(noise: float, measured_rows: int, test: LabelTest, table: Table) -> NearTies:
    """Counts rows with labels within `noise` of the best one; what it was measured on is passed on."""
    close = table - table.min(axis=1, keepdims=True) < noise
    tied = close.sum(axis=1) > 1
    own = np.array([test.labels.index(row.label) for row in test.rows])
    right = table.argmin(axis=1) == own
    reachable = close[np.arange(len(own)), own]
    return NearTies(
        noise=noise,
        measured_rows=measured_rows,
        rows=int(tied.sum()),
        right=int((tied & right).sum()),
        accuracy_range=(float((right & ~tied).mean()), float((right | reachable).mean())),
    )


def spread(scores: Table, exact: Table) -> float:
    """Twice the root mean square of what the difference between the two best labels of each row moved by."""
    best, at = np.argsort(scores, axis=1, kind="stable")[:, :2].T, np.arange(len(scores))
    moved = (scores[at, best[1]] - scores[at, best[0]]) - (exact[at, best[1]] - exact[at, best[0]])
    return float(2 * np.sqrt((moved**2).mean()))
