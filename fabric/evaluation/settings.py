"""Settings of `eval` and `generate`, and the report of `eval`: plain objects, no logic but JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from fabric.settings import (
    MAX_TOKENS,
    MODEL,
    STRIDE,
    Context,
    Device,
    Precision,
    Records,
    Setting,
    Template,
    Threads,
    Train,
    split_names,
)
from fabric.weights.settings import Adapters

MEASURES = ("exact", "rouge-l", "chrf")


def measures_of(text: str) -> tuple[str, ...]:
    """Measures by their names. ValueError for one that does not exist."""
    names = split_names(text)
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class EvalSettings:
    """`fabric eval DATA -m MODEL`. Lengths in tokens."""

    data: Records
    model: Annotated[str | None, MODEL] = None
    """None only where both answers to be judged are the rows' own fields."""
    adapters: Adapters = ()
    """Applied together, each with its scale."""
    compare: Annotated[bool, Setting("compare each adapter with the base, row by row")] = False
    accuracy: Annotated[
        Literal["likelihood", "generated"],
        Setting("accuracy of the likeliest label, or of the label that the model writes", group="Labels"),
    ] = "likelihood"
    llama_perplexity: Annotated[
        bool, Setting("perplexity as llama.cpp measures it: texts in windows of --ctx, first half not scored")
    ] = False
    """What is left at the end is not scored."""
    labels: Annotated[
        tuple[str, ...],
        Setting("labels to choose from; default: those of the rows", "NAMES", parse=split_names, group="Labels"),
    ] = ()
    measures: Annotated[
        tuple[str, ...],
        Setting(
            "compare written answers with those of the rows: exact, rouge-l, chrf",
            "NAMES",
            parse=measures_of,
            group="Written answers",
            completes=MEASURES,
        ),
    ] = ()
    """Answers are greedy, as `generate` writes them."""
    max_tokens: Annotated[int, replace(MAX_TOKENS, group="Written answers")] = 128
    """Of answers that are measured or judged."""
    judge: Annotated[
        str | None,
        Setting("model that judges pairs of answers: the base's and those with -a", "GGUF",
                path="in", group="Written answers"),
    ] = None  # fmt: skip
    against: Annotated[
        str | None,
        Setting(
            "with --judge: compare with the answers of this model, not the base",
            "GGUF",
            path="in",
            group="Written answers",
        ),
    ] = None
    answers: Annotated[
        tuple[str, ...],
        Setting("with --judge: compare with a field of the rows, or two fields; reference: the row's own answer",
                "FIELDS", parse=split_names, group="Written answers"),
    ] = ()  # fmt: skip
    judge_prompt: Annotated[
        str | None,
        Setting("with --judge: Jinja template of the question", "FILE", path="in", group="Written answers"),
    ] = None
    ctx: Context = 512
    """Rows longer than this are cut (text: split into windows); also the capacity of a pack."""
    stride: Annotated[int | None, STRIDE] = None
    """None: each token is scored once."""
    template: Template = None
    train: Train = "all"
    precision: Precision = "auto"
    threads: Threads = 0
    device: Device = "auto"

    @property
    def writes(self) -> bool:
        """Whether the model writes answers that are measured or judged."""
        return bool(self.measures or self.judge)


@dataclass(frozen=True)
class LabelCount:
    """Of one label: rows that carry it, rows for which it was chosen, and those of them where that is right."""

    rows: int = 0
    chosen: int = 0
    right: int = 0


@dataclass(frozen=True)
class NearTies:
    """Labelled rows for which another label scores as well as the chosen one, within the noise of the precision."""

    noise: float
    """Of the difference between the scores of two labels, in nats."""
    measured_rows: int
    """Rows that were scored again in f32 to find it; 0: a bound of f32 itself."""
    rows: int
    right: int
    """Those of them where the chosen label is the row's own."""
    accuracy_range: tuple[float, float]
    """The accuracy if every near-tie ended wrong, and right where the row's own label is among the tied ones."""


@dataclass(frozen=True)
class Accuracy:
    """Labelled accuracy: of the labels that a model chose for rows, those that are the rows' own."""

    rows: int
    right: int
    majority: float
    """Share of the commonest label: what a constant answer would reach."""
    interval: tuple[float, float]
    """Of the accuracy, at 95 %."""
    macro_f1: float
    """Mean over labels of the harmonic mean of precision and recall."""
    confusion: dict[str, dict[str, int]]
    """Rows by their own label and the one chosen; "" is an answer that begins with no label."""
    labels: dict[str, LabelCount]

    @property
    def accuracy(self) -> float:
        """Share of the rows whose own label was chosen."""
        return self.right / self.rows


@dataclass(frozen=True)
class Measured:
    """A text measure of written answers, from 0 to 100: its mean over `rows` and the 95 % interval of that."""

    mean: float
    interval: tuple[float, float]
    rows: int


@dataclass(frozen=True)
class PairedMeasure:
    """A text measure of an adapter against the base on the same rows."""

    difference: float
    interval: tuple[float, float]
    """Of the difference, at 95 %: rows drawn again (bootstrap)."""
    better: int
    worse: int
    p: float
    """How likely as uneven a split is by chance (sign test; of exact matches McNemar's)."""


@dataclass(frozen=True)
class Score:
    """One model on the rows. `loss`: mean nats a trained token; `perplexity`: its exponential."""

    loss: float
    perplexity: float
    accuracy: Accuracy | None
    """None where no row has a label."""
    near_ties: NearTies | None = None
    """None there too, and where the model wrote the labels."""
    measures: dict[str, Measured] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`accuracy` as a number, the rest of it beside it; all of it absent where no row has a label."""
        values: dict[str, Any] = {"loss": self.loss, "perplexity": self.perplexity}
        if self.accuracy:
            a = self.accuracy
            values |= {"accuracy": a.accuracy, "accuracy_interval": list(a.interval), "macro_f1": a.macro_f1}
            values |= {"majority": a.majority, "labelled_rows": a.rows, "confusion": a.confusion}
            values["labels"] = {label: asdict(count) for label, count in a.labels.items()}
        values |= {"near_ties": asdict(self.near_ties)} if self.near_ties else {}
        measures = {name: asdict(one) for name, one in self.measures.items()}
        return values | ({"measures": measures} if measures else {})


@dataclass(frozen=True)
class Paired:
    """An adapter against the base on the same rows."""

    loss_difference: float
    """Nats a trained token; below 0 the adapter is better."""
    loss_interval: tuple[float, float]
    """Of the difference, at 95 %: rows drawn again (bootstrap)."""
    better: int
    worse: int
    """Rows whose loss is lower, and higher, with the adapter."""
    loss_p: float
    """How likely as uneven a split is by chance (sign test)."""
    gained: int | None = None
    lost: int | None = None
    """Labelled rows that only the adapter, and only the base, got right; None where no row has a label."""
    accuracy_p: float | None = None
    """How likely as uneven a split is by chance (McNemar's exact test)."""
    measures: dict[str, PairedMeasure] | None = None


@dataclass(frozen=True)
class AdapterScore:
    """One adapter of a comparison."""

    name: str
    score: Score
    against_base: Paired

    def to_json(self) -> dict[str, Any]:
        """The score's fields beside the name."""
        paired = {k: v for k, v in asdict(self.against_base).items() if v is not None}
        return {"name": self.name, **self.score.to_json(), "against_base": paired}


@dataclass(frozen=True)
class Judged:
    """What a judge said of the answers `name` against those `against`, asked about each row in both orders."""

    name: str
    against: str
    rows: int
    wins: int
    losses: int
    """Rows in which the same answer was preferred in both orders."""
    ties: int
    """The others, those with the same answer twice included."""
    same: int
    win_rate: float
    """Wins and half the ties, by rows."""
    interval: tuple[float, float]
    """Of the win rate, at 95 %: rows drawn again (bootstrap)."""
    p: float
    """How likely as uneven wins and losses are by chance (sign test)."""
    scored_rate: float
    """Share of the rows won by the mean score of both orders, which cancels a position bias; equal ones count half."""
    scored_interval: tuple[float, float]
    scored_p: float
    first_shown: float | None
    """Share of the questions in which the answer that was shown first was preferred: 0.5 without a position bias. None
    where nothing was asked."""


@dataclass(frozen=True)
class JudgeReport:
    """What `--judge` found."""

    judge: str
    contests: tuple[Judged, ...]
    too_long: int
    """Rows left out because they do not fit the judge's context."""
    precision: str
    device: str
    seconds: float
    row_scores: list[dict[str, Any]] = field(default_factory=list)
    """Of each row: `row` (file:line), `answers` by name, and `judged`: what became of each contest."""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Without the rows."""
        return {k: v for k, v in asdict(self).items() if k != "row_scores"}


@dataclass(frozen=True)
class EvalReport:
    """What `eval` found. `score` is of the base with all adapters; with `compare` of the base with the first of them,
    `base` of the base alone, and `adapters` of each by itself."""

    score: Score
    base: Score | None
    adapters: tuple[AdapterScore, ...]
    rows: int
    """Records read."""
    tokens: int
    trained_tokens: int
    """Tokens that were scored: all of a text, the answers of other rows."""
    cut: int
    """Rows longer than the context, which lost their end."""
    nothing_to_train: int
    """Rows left out because nothing of them is an answer."""
    precision: str
    device: str
    seconds: float
    tokens_per_s: float
    row_scores: list[dict[str, Any]] = field(default_factory=list)
    """Of each row: `row` (file:line), `trained_tokens`, `loss` by model, its `label` and the one `chosen` by each; the
    `answers` that were written, their `measures`, and how they were `judged`."""
    notes: list[str] = field(default_factory=list)
    """Sentences worth a line: adapters of another base, rows cut or left out, labels that cannot be told apart."""
    judged: JudgeReport | None = None

    def to_json(self) -> dict[str, Any]:
        """One object with the score's fields in it; `base` and `adapters` hold the same of each in a comparison."""
        own = {k: v for k, v in vars(self).items() if k not in ("score", "base", "adapters", "row_scores", "judged")}
        own |= {"judged": self.judged.to_json()} if self.judged else {}
        compared = {"base": self.base.to_json(), "adapters": [a.to_json() for a in self.adapters]} if self.base else {}
        return {**self.score.to_json(), **compared, **own}
