"""Pairwise judging: a model says which of two answers to a row is better, asked in both orders.

It reads the question and both answers, named A and B, in one user's turn of its own chat template. Its verdict is
whichever of the letters it finds likelier as the beginning of its answer, so that any model can judge and nothing is
parsed. An answer wins a row if it is preferred in both orders; all else is a tie. Equal answers are a tie unasked.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fabric.data.records import read_records
from fabric.errors import DataError, UsageError
from fabric.evaluation.answers import Asked, asked, memory, spoken
from fabric.evaluation.scoring import Choice, costs
from fabric.evaluation.settings import EvalSettings, Judged, JudgeReport
from fabric.evaluation.statistics import bootstrap_interval, even_chance
from fabric.files import shown
from fabric.generation.model import Model, Text, open_model, open_text
from fabric.generation.prompts import ANSWERED
from fabric.generation.prompts import asked as ids_of
from fabric.models.inference import Decoder
from fabric.text.template import read_template
from fabric.text.worker import Ask, Worker
from fabric.weights.settings import Progress

LETTERS = ("A", "B")
PROMPT = """\
Two answers to the same question follow. Decide which one is better: more correct first, then more helpful and clear.
The order in which they stand means nothing, nor does their length.

{% if messages | length == 1 %}
Question:
{{ question }}
{% else %}
Conversation:
{% for message in messages %}
{{ message.role }}: {{ message.content }}
{% endfor %}
{% endif %}

{% if reference %}
A correct answer, for comparison:
{{ reference }}

{% endif %}
Answer A:
{{ a }}

Answer B:
{{ b }}

Which answer is better? Reply with one letter, A or B.
"""
REFERENCE = "reference"  # the name of a row's own answer among fields
_ANSWERS = 2  # in a prompt
_SLACK = 2  # tokens of the judge for a token of the model


@dataclass(frozen=True)
class Contest:
    """The answers `name` to each row, and the `others`, which are those `against`."""

    name: str
    against: str
    answers: Sequence[str]
    others: Sequence[str]

    @property
    def blind(self) -> bool:
        """Whether the row's own answer is one of the two, and so is not shown as the correct one."""
        return REFERENCE in (self.name, self.against)


class Judge:
    """The judging model's text side, and what it is asked."""

    def __init__(self, text: Text, worker: Worker) -> None:
        self.text = text
        self._worker = worker
        self.limit = text.gguf.get(f"{text.gguf.architecture}.context_length", int, 1 << 20)

    def choice(self, row: Asked, a: str, b: str, blind: bool) -> Choice:
        """Both letters after the question about a row. Raises DataError naming it."""
        question = next((m["content"] for m in reversed(row.messages) if m.get("role") == "user"), "")
        names = {"question": question, "a": a, "b": b, "reference": None if blind else row.reference}
        (message,) = self._worker.render([[row.messages, None, names]], [Ask()])
        if isinstance(message, DataError):
            raise DataError(f"{row.source}: {message}")
        ids = ids_of({"messages": [{"role": "user", "content": message.strip()}]}, row.source, self.text)
        return Choice(tuple(ids), [tuple(self.text.tokenizer.encode(x, follows=ids[-1])) for x in LETTERS])


@contextlib.contextmanager
def open_judge(settings: EvalSettings) -> Iterator[Judge]:
    """Maps the judge and reads its prompt. Raises DataError, MissingInputError."""
    assert settings.judge is not None
    custom = settings.judge_prompt
    source = read_template(custom, "the judge's prompt") if custom else PROMPT
    worker = Worker(source, {}, called=f"the judge's prompt {shown(custom)}" if custom else "the judge's prompt")
    with contextlib.ExitStack() as stack:
        stack.callback(worker.stop)
        text = stack.enter_context(open_text(settings.judge, None))
        if custom and (missing := sorted({"a", "b"} - worker.variables())):
            raise DataError(f"the judge's prompt {shown(custom)} does not show {{{{ {missing[0]} }}}}")
        yield Judge(text, worker)


def check_contest(settings: EvalSettings) -> None:
    """UsageError for settings of a judge that make no sense."""
    flags = {"--against": settings.against, "--answers": settings.answers, "--judge-prompt": settings.judge_prompt}
    if settings.judge is None:
        if given := [flag for flag, value in flags.items() if value]:
            raise UsageError(f"{given[0]} says what is judged: name the judge with --judge")
        return
    if settings.against and settings.answers:
        raise UsageError("--against and --answers both say what the model's answers are held against: leave one out")
    if len(settings.answers) > 2:
        raise UsageError("--answers names one field of the rows, or two")
    if len(settings.answers) == 2 and settings.model is not None:
        raise UsageError("two fields of --answers are judged without a model: leave out -m, or name one field")
    if settings.model is not None and not (settings.against or settings.answers or settings.adapters):
        raise UsageError(
            "--judge compares two answers: give an adapter with -a, another model with --against, or a field of the "
            "rows with --answers"
        )


def check_judge(settings: EvalSettings, rows: Sequence[Asked]) -> str:
    """Opens the judge for a moment, before answers are written, with as much memory as it will need if a token of the
    model is at most two of the judge: a sentence that says how much. Raises DataError, MissingInputError, DeviceError.
    """
    with open_judge(settings) as judge:
        longest = max(len(judge.choice(row, "", "", blind=False).prompt) for row in rows)
        room = max(settings.ctx, min(judge.limit, longest + _ANSWERS * _SLACK * settings.max_tokens))

        def trial(model: Model) -> contextlib.closing[Decoder]:
            return contextlib.closing(Decoder(model.weights, room, room, len(LETTERS), model.precision, context=room))

        with open_model(judge.text, settings, trial) as (model, decoder):
            return f"{judge.text.gguf.name} judges {memory(judge.text, model, decoder)}, once the others are closed"


def judge(
    settings: EvalSettings, rows: Sequence[Asked], contests: Sequence[Contest], progress: Progress | None = None
) -> JudgeReport:
    """Judges contests. `progress`: called with (tokens done, tokens in all)."""
    start = time.monotonic()
    with open_judge(settings) as opened, open_model(opened.text, settings, contextlib.nullcontext) as (model, _):
        asks = [_questions(opened, rows, contest) for contest in contests]
        left_out = {i for questions in asks for i, pair in questions.items() if max(_lengths(pair)) >= opened.limit}
        kept = [{i: pair for i, pair in questions.items() if i not in left_out} for questions in asks]
        total = sum(choice.tokens for questions in kept for pair in questions.values() for choice in pair)
        if len(left_out) == len(rows):
            raise DataError(f"{shown(settings.data)}: no row fits the judge's context of {opened.limit} tokens")
        done = _counting(total, progress)
        found = []
        for questions in kept:
            choices = [choice for pair in questions.values() for choice in pair]
            scores = np.array(costs(model, {}, choices, settings.ctx, done) if choices else []).reshape(-1, 2, 2)
            # Of each question: by how much the first answer shown is likelier than the second.
            found.append(dict(zip(questions, scores[:, :, 1] - scores[:, :, 0], strict=True)))
        judged = [i for i in range(len(rows)) if i not in left_out]
        notes = [f"{settings.judge}: {note}" for note in model.notes]
        if left_out:
            notes.append(
                f"{shown(settings.data)}: {len(left_out)} of {len(rows)} rows are too long for the judge's context of "
                f"{opened.limit} tokens and left out"
            )
        return JudgeReport(
            judge=opened.text.gguf.name,
            contests=tuple(_tally(one, judged, margins) for one, margins in zip(contests, found, strict=True)),
            too_long=len(left_out),
            precision=model.precision,
            device=model.device,
            seconds=time.monotonic() - start,
            row_scores=_row_scores(rows, contests, judged, found),
            notes=notes,
        )


def judge_fields(settings: EvalSettings, progress: Progress | None = None) -> JudgeReport:
    """Judges answers that the rows hold in two of their fields."""
    rows = []
    for record in read_records(settings.data, prompts=True, used=[*settings.answers, *ANSWERED]):
        row = asked(record)
        if row is None:
            raise DataError(f"{record.source}: a {record.kind} row asks nothing, so its answers cannot be judged")
        rows.append(row)
    if not rows:
        raise DataError(f"{shown(settings.data)}: no rows")
    against, name = settings.answers
    contest = Contest(name, against, field_of(rows, name), field_of(rows, against))
    return judge(settings, rows, [contest], progress)


def field_of(rows: Sequence[Asked], name: str) -> list[str]:
    """The answer that each row holds in a field; DataError naming the first that has none."""
    found = []
    for row in rows:
        value = row.record.data.get(name)
        if name == REFERENCE and value is None:
            value = row.reference
        if not isinstance(value, str):
            raise DataError(f"{row.source}: there is no text in the field {name!r}, which --answers names")
        found.append(value)
    return found


Questions = dict[int, tuple[Choice, Choice]]  # by row; those with the same answer twice are not asked


def _questions(judge: Judge, rows: Sequence[Asked], contest: Contest) -> Questions:
    found = {}
    for i, (row, mine, other) in enumerate(zip(rows, contest.answers, contest.others, strict=True)):
        a, b = spoken(mine), spoken(other)
        if a != b:
            found[i] = judge.choice(row, a, b, contest.blind), judge.choice(row, b, a, contest.blind)
    return found


def _lengths(pair: tuple[Choice, Choice]) -> list[int]:
    return [len(choice.prompt) for choice in pair]


def _counting(total: int, progress: Progress | None) -> Callable[[int], None]:
    count = 0

    def done(tokens: int) -> None:
        nonlocal count
        count += tokens
        if progress:
            progress(count, total)

    return done


def _verdict(margins: Any) -> str:
    """From the margins of the answer shown first, in both orders: the candidate is first in the first of them."""
    if margins is None or margins[0] * margins[1] >= 0:
        return "tie"
    return "win" if margins[0] > 0 else "loss"


def _preference(margins: Any) -> float:
    """By how many nats the candidate's letter is likelier than the other's, averaged over both orders."""
    return 0.0 if margins is None else float(margins[0] - margins[1]) / 2


def _rate(points: Sequence[float]) -> tuple[float, tuple[float, float], float]:
    """Of rows won (1), lost (0) and neither (0.5): the mean, its interval, and the sign test's p."""
    values = np.array(points)
    p = even_chance(int((values > 0.5).sum()), int((values < 0.5).sum()))
    return float(values.mean()), bootstrap_interval(values, np.ones(len(values))), p


def _tally(contest: Contest, judged: Sequence[int], margins: dict[int, Any]) -> Judged:
    verdicts = [_verdict(margins.get(i)) for i in judged]
    counts, asked_rows = Counter(verdicts), [margins[i] for i in judged if i in margins]
    rate, interval, p = _rate([{"win": 1.0, "tie": 0.5, "loss": 0.0}[verdict] for verdict in verdicts])
    preferences = np.array([_preference(margins.get(i)) for i in judged])
    scored_rate, scored_interval, scored_p = _rate((np.sign(preferences) / 2 + 0.5).tolist())
    return Judged(
        name=contest.name,
        against=contest.against,
        rows=len(judged),
        wins=counts["win"],
        losses=counts["loss"],
        ties=counts["tie"],
        same=len(judged) - len(asked_rows),
        win_rate=rate,
        interval=interval,
        p=p,
        scored_rate=scored_rate,
        scored_interval=scored_interval,
        scored_p=scored_p,
        first_shown=float((np.array(asked_rows) > 0).mean()) if asked_rows else None,
    )


def _row_scores(
    rows: Sequence[Asked], contests: Sequence[Contest], judged: Sequence[int], found: Sequence[dict[int, Any]]
) -> list[dict[str, Any]]:
    scores = []
    for i in judged:
        answers: dict[str, str] = {}
        verdicts: dict[str, Any] = {}
        for contest, margins in zip(contests, found, strict=True):
            answers |= {contest.against: contest.others[i], contest.name: contest.answers[i]}
            seen = margins.get(i)
            verdicts[contest.name] = {
                "against": contest.against, "verdict": _verdict(seen), "preference": _preference(seen)
            }  # fmt: skip
        scores.append({"row": rows[i].source, "answers": answers, "judged": verdicts})
    return scores
