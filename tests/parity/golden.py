"""Small golden files, so that a machine without torch can still tell a broken model. `python -m tests.parity.golden`
writes them anew: a model whose matrices are in eight formats, and what PyTorch and PEFT make of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.random_models import random_pairs, write_model
from tests.support.shapes import RopeScaling, Shape

FOLDER = Path(__file__).parent / "golden"
MODEL, NUMBERS = FOLDER / "model.gguf", FOLDER / "numbers.npz"
SHAPE = Shape(rope_scaling=RopeScaling(), tied=False)
TYPES = {
    "token_embd": "Q8_0",
    "attn_q": "Q8_0",
    "attn_k": "Q4_0",
    "attn_v": "Q4_1",
    "attn_output": "Q5_0",
    "ffn_gate": "Q5_1",
    "ffn_up": "F16",
    "ffn_down": "BF16",
    "output": "Q8_0",
}
ALPHA = 8.0
STEPS = 6


def main() -> None:
    """Writes the model, its logits, the gradients of random pairs, and a short training run from them."""
    import torch

    from tests.parity.reference import Recipe, Reference, train
    from tests.parity.rows import batches

    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    write_model(MODEL, SHAPE, TYPES, seed=7)
    pairs = random_pairs(SHAPE, seed=8, b_std=0.1)
    steps = batches(SHAPE.vocab, steps=STEPS)
    numbers = {}
    reference = Reference(MODEL, torch.float64)
    numbers["logits"] = reference.logits(steps[0][0].tokens)
    reference.add_lora(pairs, ALPHA)
    total, count = reference.backward(steps[0])
    numbers["nll"] = np.array([total, count])
    for name, (a, b) in pairs.items():
        numbers[f"{name}:a"], numbers[f"{name}:b"] = a, b
    for name, (a, b) in reference.gradients().items():
        numbers[f"{name}:a:grad"], numbers[f"{name}:b:grad"] = a, b
    numbers["losses"] = np.array([step.loss for step in train(reference, steps, Recipe(STEPS, lr=5e-3))])
    np.savez_compressed(NUMBERS, **numbers)


if __name__ == "__main__":
    main()
