"""`fabric eval --llama-perplexity` beside what the logits of stock llama.cpp come to in its way of telling it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("xllamacpp", reason="this parity needs stock llama.cpp: pip install xllamacpp")

from tests.cli.shell import fabric
from tests.support.compare import log_softmax
from tests.support.llama_cpp import Llama
from tests.support.paths import REPOSITORY, gemma3, smollm2

WINDOW = 256


@pytest.mark.parametrize("model", [smollm2, gemma3])
def test_perplexity_of_a_text_is_that_of_stock_llama_cpp(model: Callable[[], Path], tmp_path: Path) -> None:
    """Windows of 256 tokens, each from an empty cache; the first half and what follows the last window go unscored.

    Both read F32 weights: by quantized ones, llama.cpp multiplies activations that it quantizes too.
    """
    text = (REPOSITORY / "LICENSE").read_text()[:6000]
    weights = tmp_path / "f32.gguf"
    made = fabric("quantize", model(), "--type", "f32", "-o", weights, timeout=600)
    assert made.code == 0, made.err
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": text}) + "\n")
    flags = ["--llama-perplexity", "--ctx", str(WINDOW), "--precision", "f32", "--json"]
    told = fabric("eval", rows, "-m", weights, *flags, timeout=600)
    assert told.code == 0, told.err
    bos = model is gemma3
    with Llama(weights, n_ctx=WINDOW) as llama:
        ids = llama.tokenize(text, special=False, bos=bos)
        costs: list[float] = []
        for start in range(0, len(ids) - WINDOW + 1, WINDOW):
            window = ids[start : start + WINDOW]
            if bos:
                window[0] = ids[0]
            log_p = log_softmax(llama.logits(window))
            costs += [-float(log_p[at, window[at + 1]]) for at in range(WINDOW // 2, WINDOW - 1)]
    assert len(costs) > 3 * (WINDOW // 2 - 1), "the text has too few windows to show anything"
    found = json.loads(told.out)
    assert found["trained_tokens"] == len(costs)
    assert found["perplexity"] == pytest.approx(float(np.exp(np.mean(costs))), rel=5e-4)
