"""Text measures: how near a written answer is to the row's own. Each is from 0 to 100, and a row's does not depend on
other rows, so that means can be bootstrapped and models compared row by row.

exact    100 where both are equal once normalised: Unicode NFKC, lower case, without punctuation, white space as one
         space; else 0
rouge-l  F1 of the longest common subsequence of words (Lin 2004), by the package rouge-score. Words are runs of letters
         and digits, normalised likewise; in scripts that write no spaces every character is one
chrf     F2 over character n-grams up to 6 (Popović 2015), by the package sacrebleu at its defaults
"""

from __future__ import annotations

import functools
import importlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from fabric.errors import UsageError
from fabric.evaluation.settings import Measured, PairedMeasure
from fabric.evaluation.statistics import bootstrap_interval, even_chance

Values = npt.NDArray[np.float64]
Measure = Callable[[str, str], float]  # (answer, reference)

_PUNCTUATION = regex.compile(r"\p{P}+")
_WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|[\p{L}\p{M}\p{N}]+")


def normalised(text: str) -> str:
    """NFKC, lower case, no punctuation, single spaces."""
    return " ".join(_PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())


def tables(names: Sequence[str]) -> dict[str, Measure]:
    """The measures by name. Raises UsageError where a package is missing."""
    made = {"exact": _exact, "rouge-l": _rouge_l, "chrf": _chrf}
    return {name: made[name]() for name in names}


def measure(measures: dict[str, Measure], pairs: Sequence[tuple[str, str]]) -> dict[str, Values]:
    """(rows,) of each measure. pairs: answer and reference of each row."""
    return {name: np.array([one(*pair) for pair in pairs]) for name, one in measures.items()}


def measured(values: Values) -> Measured:
    """The mean of a measure over rows and its interval."""
    return Measured(float(values.mean()), bootstrap_interval(values, np.ones(len(values))), len(values))


def paired(values: Values, base: Values) -> PairedMeasure:
    """A model against another on the same rows."""
    difference = values - base
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    interval = bootstrap_interval(difference, np.ones(len(values)))
    return PairedMeasure(float(difference.mean()), interval, better, worse, even_chance(better, worse))


def _exact() -> Measure:
    return lambda answer, reference: 100.0 * (normalised(answer) == normalised(reference))


class _Words:
    """A tokenizer as rouge-score asks for: its own knows Latin letters alone."""

    def tokenize(self, text: str) -> list[str]:
        found: list[str] = _WORD.findall(normalised(text))
        return found


def _rouge_l() -> Measure:
    scorer = _package("rouge_score.rouge_scorer", "rouge-l").RougeScorer(["rougeL"], tokenizer=_Words())

    def rouge_l(answer: str, reference: str) -> float:
        return 100.0 * float(scorer.score(reference, answer)["rougeL"].fmeasure)

    return rouge_l


def _chrf() -> Measure:
    chrf = _package("sacrebleu.metrics", "chrf").CHRF()
    return lambda answer, reference: float(chrf.sentence_score(answer, [reference]).score)


@functools.cache
def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"rouge-l": "rouge-score", "chrf": "sacrebleu"}[name]
        raise UsageError(
            f"--measures {name} needs the package {package}, which is not installed: pip install 'fabric-llm[text]'"
        ) from None
