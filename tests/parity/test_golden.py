from __future__ import annotations

import numpy as np
import pytest

from tests.parity import golden, ours
from tests.parity.rows import Row, batches
from tests.support.compare import relative_error


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    with np.load(golden.NUMBERS) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return batches(golden.SHAPE.vocab, steps=1)[0]


def test_eight_block_formats_give_the_logits_of_pytorch(numbers: dict[str, np.ndarray], rows: list[Row]) -> None:
    assert relative_error(ours.logits(golden.MODEL, rows[0].tokens), numbers["logits"]) < 1e-5


def test_lora_gradients_are_those_of_peft(numbers: dict[str, np.ndarray], rows: list[Row]) -> None:
    names = [key.removesuffix(":a") for key in numbers if key.endswith(":a")]
    pairs = {name: (numbers[f"{name}:a"], numbers[f"{name}:b"]) for name in names}
    nll, grads = ours.gradients(golden.MODEL, pairs, golden.ALPHA, rows)
    total, count = numbers["nll"]
    assert len(nll) == count
    assert abs(float(nll.sum()) - total) < 1e-5 * total
    for name in names:
        for got, part in zip(grads[name], ("a", "b"), strict=True):
            assert relative_error(got, numbers[f"{name}:{part}:grad"]) < 1e-4, (name, part)
