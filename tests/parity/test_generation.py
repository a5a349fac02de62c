"""`fabric generate` beside stock llama.cpp: the same greedy text on twenty prompts, but for near-ties."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="this parity needs stock llama.cpp: pip install xllamacpp")
pytest.importorskip("gguf", reason="this parity needs the gguf package")

from tests.cli.shell import fabric
from tests.support.compare import log_softmax
from tests.support.decoded import decoded_copy
from tests.support.llama_cpp import Llama
from tests.support.paths import gemma3, smollm2

TIE = 0.1
"""Nats between the likeliest token and the one that was chosen."""
TOKENS = 24
PROMPTS = [
    "The capital of France is", "Water boils at a temperature of", "The old man and the sea", "Once upon a time",
    "To make bread, you need", "The largest planet of the Sun", "In the morning, the harbour", "A triangle has",
    "The first person on the Moon", "Photosynthesis is the process by which", "My favourite season is", "Dear Sir,",
    "The cat sat on", "Python is a programming language that", "During the war,", "She opened the letter and",
    "Ten plus seven is", "The heart pumps", "If it rains tomorrow,", "The recipe calls for two eggs and",
]  # fmt: skip


@pytest.mark.parametrize("model", [smollm2, gemma3])
def test_greedy_text_is_that_of_stock_llama_cpp_but_for_near_ties(model: Callable[[], Path], tmp_path: Path) -> None:
    """Each token of each answer is the likeliest in stock llama.cpp, or next to it, after what stands before it.

    Stock sees the file's blocks as F32: on blocks it rounds activations to 8 bits, which moves ties of its own.
    """
    path, rows = model(), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    told = fabric("generate", rows, "-m", path, "--precision", "f32", "--max-tokens", str(TOKENS), timeout=600)
    assert told.code == 0, told.err
    answers = [json.loads(line)["answer"] for line in told.out.splitlines()]
    assert len(set(answers)) == len(PROMPTS)
    with Llama(decoded_copy(path, tmp_path / "decoded.gguf")) as llama:
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            asked, said = llama.tokenize(prompt, bos=model is gemma3), llama.tokenize(answer, special=False)
            assert len(said) > 1
            log_p = log_softmax(llama.logits(asked + said, last=len(said) + 1))[:-1]
            short = [float(row.max() - row[token]) for row, token in zip(log_p, said, strict=True)]
            assert max(short) < TIE, (prompt, answer, short)
    (tmp_path / "decoded.gguf").unlink()
