"""`eval`: loss, perplexity and labelled accuracy of a base with and without adapters, and what adapters changed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fabric.errors import DataError, UsageError
from fabric.evaluation.answers import Asked, planned, prompts_of, spoken, written
from fabric.evaluation.judge import Contest, check_contest, check_judge, field_of, judge
from fabric.evaluation.labels import MOST_LABELS, LabelTest, label_test
from fabric.evaluation.measures import Measure, measure, measured, tables
from fabric.evaluation.measures import paired as paired_measure
from fabric.evaluation.rows import Rows, read_rows
from fabric.evaluation.scoring import Done, Loras, costs, score
from fabric.evaluation.settings import AdapterScore, EvalReport, EvalSettings, JudgeReport, Paired, Score
from fabric.evaluation.statistics import bootstrap_interval, even_chance
from fabric.evaluation.ties import measured as measured_again
from fabric.evaluation.ties import near_ties
from fabric.files import check_streams, shown
from fabric.generation.model import Model, Text, open_model, open_text
from fabric.text.encode import Example
from fabric.weights.settings import AdapterInput, Progress

_BEFORE_A_LABEL = 8  # tokens of an answer that may stand in front of its label: white space, an empty thought


def evaluate(
    settings: EvalSettings, progress: Progress | None = None, note: Callable[[str], None] = lambda text: None
) -> EvalReport:
    """Scores a model on records. `progress`: called with (tokens done, tokens in all); `note` with what is worth a line
    before answers are written.

    Loss and perplexity are over trained tokens: all of a text but what a window starts from, the answers of other rows.
    Raises DataError, MissingInputError, UsageError, DeviceError.
    """
    check_settings(settings)
    if settings.judge and settings.adapters and not (settings.against or settings.answers):
        settings = replace(settings, compare=True)
    if settings.model is None:
        raise UsageError("give a model with -m; only two fields of --answers are judged without one")
    measures = tables(settings.measures)
    with open_text(settings.model, settings.template, settings.adapters) as text:
        rows = read_rows(settings, text)
        test = _label_test(settings, rows, text)
        prompts = prompts_of(rows.asked, text)
        fields = [field_of(rows.asked, name) for name in settings.answers]
        if settings.judge:
            note(check_judge(settings, rows.asked))
        if settings.against:
            note(_check_another(settings, rows.asked))
        with open_model(text, settings, planned(text, prompts, settings.max_tokens, settings.ctx)) as (model, takes):
            if prompts:
                note(takes)
            variants = [{}, *model.each] if settings.compare else [model.loras]
            tokens = sum(len(example.tokens) for example in rows.examples)
            each = tokens + _label_tokens(settings, test, model.precision) + sum(map(len, prompts))
            judging = _judging_tokens(settings, prompts, len(variants))
            meter = _Meter(len(variants) * each + judging, progress)
            start = time.monotonic()
            found = [_score(settings, text, model, loras, rows, test, meter.add) for loras in variants]
            for one, loras in zip(found, variants, strict=True):
                one.answers = (
                    written(text, model, loras, prompts, settings.max_tokens, settings.ctx, meter.add)
                    if prompts
                    else []
                )
                one.measure(measures, rows.asked)
            seconds = time.monotonic() - start
            scored = meter.done
        judged = None
        if settings.judge:
            opponents = fields or ([_of_another(settings, rows.asked)] if settings.against else [])
            contests = _contests(settings, found, opponents)
            judged = judge(settings, rows.asked, contests, meter.part(judging))
        compared = _compared(settings, rows, found) if settings.compare else ()
        return EvalReport(
            score=compared[0].score if compared else found[0].score,
            base=found[0].score if compared else None,
            adapters=compared,
            rows=rows.report.rows,
            tokens=tokens,
            trained_tokens=sum(example.trained for example in rows.examples),
            cut=rows.report.cut,
            nothing_to_train=rows.report.nothing_to_train,
            precision=model.precision,
            device=model.device,
            seconds=seconds,
            tokens_per_s=scored / seconds,
            row_scores=_row_scores(settings, rows, found, judged),
            notes=[*model.notes, *rows.notes, *(judged.notes if judged else [])],
            judged=judged,
        )


def check_settings(settings: EvalSettings) -> None:
    """UsageError for values that make no sense."""
    check_streams(
        [
            settings.data,
            settings.model,
            settings.judge,
            settings.against,
            *(adapter.path for adapter in settings.adapters),
        ],
        [],
    )
    if settings.compare and not settings.adapters:
        raise UsageError("--compare sets an adapter against the base: give one with -a")
    if settings.ctx < 2:
        raise UsageError(f"--ctx must be at least 2 tokens, not {settings.ctx}")
    if settings.stride is not None and not 0 < settings.stride < settings.ctx:
        raise UsageError(f"--stride must lie between 0 and --ctx {settings.ctx}, not {settings.stride}")
    if settings.llama_perplexity and settings.stride is not None:
        raise UsageError("--stride and --llama-perplexity exclude each other: both say where windows lie")
    check_contest(settings)
    if len(settings.labels) == 1 or len(set(settings.labels)) < len(settings.labels):
        raise UsageError("--labels must name at least two labels, each once")


class _Meter:
    """Counts tokens for whoever watches."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done = total, progress, 0

    def add(self, tokens: int) -> None:
        self.done += tokens
        if self.progress:
            self.progress(self.done, self.total)

    def part(self, tokens: int) -> Progress:
        """Progress that counts as so many tokens, whatever it counts itself."""
        before = self.done

        def of(done: int, total: int) -> None:
            self.done = before
            self.add(tokens * done // max(1, total))

        return of


def _label_test(settings: EvalSettings, rows: Rows, text: Text) -> LabelTest | None:
    """None, with a note, where there is no choice to make."""
    name = shown(settings.data)
    if settings.labels and not rows.labelled:
        raise DataError(f"{name}: no row has one of the labels {', '.join(settings.labels)} at the start of its answer")
    labels: Sequence[str] = settings.labels or sorted({row.label for row in rows.labelled})
    if len(labels) > MOST_LABELS and not settings.labels:
        rows.notes.append(
            f"{name}: {len(labels)} different labels are too many to choose from; name some with --labels"
        )
        return None
    if len(labels) < 2:
        if labels:
            rows.notes.append(
                f"{name}: every label is {labels[0]!r}, so accuracy is not reported; name others with --labels"
            )
        return None
    test = label_test(rows.labelled, labels, text.tokenizer)
    if test.ambiguous:
        a, b = test.ambiguous
        rows.notes.append(f"{name}: the label {a!r} begins {b!r}, which therefore is never found likelier")
    return test


@dataclass
class _Found:
    """Of one model: its score, the loss of each row that has one, summed, and which labelled rows it got right; what it
    wrote, and the measures of that for rows that have an answer of their own."""

    score: Score
    sums: npt.NDArray[np.float64]
    right: list[bool]
    chosen: list[str]
    answers: list[str] = field(default_factory=list)
    values: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def measure(self, measures: dict[str, Measure], asked: Sequence[Asked]) -> None:
        """Fills in the measures of the answers."""
        if measures:
            pairs = ((spoken(answer), row.reference) for answer, row in zip(self.answers, asked, strict=True))
            self.values = measure(measures, [(answer, own) for answer, own in pairs if own is not None])
            self.score = replace(self.score, measures={name: measured(one) for name, one in self.values.items()})


def _label_tokens(settings: EvalSettings, test: LabelTest | None, precision: str) -> int:
    if test is None:
        return 0
    if settings.accuracy == "generated":
        return sum(len(choice.prompt) for choice in test.choices)
    again = (test.choices[i] for i in measured_again(test.choices, precision))
    return sum(choice.tokens for choice in (*test.choices, *again))


def _score(
    settings: EvalSettings, text: Text, model: Model, loras: Loras, rows: Rows, test: LabelTest | None, done: Done
) -> _Found:
    sums = score(model, loras, rows.examples, settings.ctx, done)
    loss = float(sums.sum()) / sum(example.trained for example in rows.examples)
    if not math.isfinite(loss):
        raise DataError(f"{text.gguf.name}: the loss is not a number; the model or an adapter is damaged")
    chosen, ties = None, None
    if test and settings.accuracy == "likelihood":
        found = costs(model, loras, test.choices, settings.ctx, done)
        chosen, ties = test.likeliest(found), near_ties(model, loras, test, found, settings.ctx, done)
    elif test:
        prompts = [choice.prompt for choice in test.choices]
        most = max(len(ids) for choice in test.choices for ids in choice.candidates) + _BEFORE_A_LABEL
        chosen = test.written(written(text, model, loras, prompts, most, settings.ctx, done))
    accuracy = test.accuracy(chosen) if test and chosen else None
    right = [row.label == label for row, label in zip(test.rows, chosen, strict=True)] if test and chosen else []
    total = Score(loss, math.exp(min(loss, 700.0)), accuracy, ties)
    return _Found(total, _by_row(rows.examples, sums), right, chosen or [])


def _by_row(examples: Sequence[Example], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values of examples added up by the row they came from."""
    numbers = {source: i for i, source in enumerate(dict.fromkeys(example.source for example in examples))}
    return np.bincount([numbers[example.source] for example in examples], values).astype(np.float64)


def _compared(settings: EvalSettings, rows: Rows, found: Sequence[_Found]) -> tuple[AdapterScore, ...]:
    """Each adapter against the base, which comes first."""
    base, counts = found[0], _by_row(rows.examples, np.array([float(example.trained) for example in rows.examples]))
    compared = []
    for adapter, tuned in zip(settings.adapters, found[1:], strict=True):
        difference = tuned.sums - base.sums
        better, worse = int((difference < 0).sum()), int((difference > 0).sum())
        gained = sum(right and not was for right, was in zip(tuned.right, base.right, strict=True))
        lost = sum(was and not right for right, was in zip(tuned.right, base.right, strict=True))
        paired = Paired(
            loss_difference=float(difference.sum() / counts.sum()),
            loss_interval=bootstrap_interval(difference, counts),
            better=better,
            worse=worse,
            loss_p=even_chance(better, worse),
        )
        if base.right:
            paired = replace(paired, gained=gained, lost=lost, accuracy_p=even_chance(gained, lost))
        if base.values:
            against = {name: paired_measure(values, base.values[name]) for name, values in tuned.values.items()}
            paired = replace(paired, measures=against)
        compared.append(AdapterScore(_name(adapter), tuned.score, paired))
    return tuple(compared)


def _row_scores(
    settings: EvalSettings, rows: Rows, found: Sequence[_Found], judged: JudgeReport | None
) -> list[dict[str, Any]]:
    """What each model made of each row that was scored, in input order."""
    names, verdicts = _names(settings), {row["row"]: row for row in (judged.row_scores if judged else [])}
    written_to = {row.source: i for i, row in enumerate(rows.asked)}
    answered = [row.source for row in rows.asked if row.reference is not None]
    measured_at = {source: i for i, source in enumerate(answered)}
    counts = _by_row(rows.examples, np.array([float(example.trained) for example in rows.examples]))
    number = {source: i for i, source in enumerate(rows.sources)}
    scores = []
    for i, source in enumerate(dict.fromkeys(example.source for example in rows.examples)):
        losses = {name: float(one.sums[i] / counts[i]) for name, one in zip(names, found, strict=True) if counts[i]}
        row: dict[str, Any] = {"row": source, "trained_tokens": int(counts[i]), "loss": losses}
        if source in number and found[0].chosen:
            at = number[source]
            row |= {"label": rows.labelled[at].label}
            row["chosen"] = {name: one.chosen[at] for name, one in zip(names, found, strict=True)}
        if source in written_to:
            answers = {name: one.answers[written_to[source]] for name, one in zip(names, found, strict=True)}
            row["answers"] = {**verdicts.get(source, {}).get("answers", {}), **answers}
        if source in measured_at and found[0].values:
            at = measured_at[source]
            row["measures"] = {
                name: {measure: float(values[at]) for measure, values in one.values.items()}
                for name, one in zip(names, found, strict=True)
            }
        if source in verdicts:
            row["judged"] = verdicts[source]["judged"]
        scores.append(row)
    return scores


def _names(settings: EvalSettings) -> list[str]:
    """Of the models that are scored."""
    return ["base", *map(_name, settings.adapters)] if settings.compare else ["model"]


def _judging_tokens(settings: EvalSettings, prompts: Sequence[Sequence[int]], variants: int) -> int:
    """About as many as judging takes."""
    if not settings.judge:
        return 0
    pairs = variants if settings.against or settings.answers else variants - 1
    return 2 * pairs * sum(len(ids) + 2 * settings.max_tokens for ids in prompts)


def _contests(settings: EvalSettings, found: Sequence[_Found], opponents: Sequence[list[str]]) -> list[Contest]:
    """What is judged: each model against the other one, or each adapter against the base."""
    names = _names(settings)
    if opponents:
        other = settings.against or settings.answers[0]
        return [Contest(name, other, one.answers, opponents[0]) for name, one in zip(names, found, strict=True)]
    pairs = list(zip(names, found, strict=True))
    return [Contest(name, names[0], one.answers, found[0].answers) for name, one in pairs[1:]]


def _check_another(settings: EvalSettings, asked: Sequence[Asked]) -> str:
    """Opens the model of --against for a moment; a sentence that says what its answers take."""
    assert settings.against is not None
    with open_text(settings.against, None) as text:
        trial = planned(text, prompts_of(asked, text), settings.max_tokens, settings.ctx)
        with open_model(text, settings, trial) as (_, sentence):
            return sentence


def _of_another(settings: EvalSettings, asked: Sequence[Asked]) -> list[str]:
    """The answers of another model, which is opened for them alone."""
    assert settings.against is not None
    with open_text(settings.against, None) as text, open_model(text, settings, contextlib.nullcontext) as (model, _):
        return written(text, model, {}, prompts_of(asked, text), settings.max_tokens, settings.ctx, lambda tokens: None)


def _name(adapter: AdapterInput) -> str:
    return adapter.path if adapter.scale == 1 else f"{adapter.path}={adapter.scale:g}"
