"""What `eval` and `generate` are told, and what `eval` reports: plain objects, no logic but JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fabric.text.conversation import Train
from fabric.weights.settings import AdapterInput

Precision = Literal["auto", "f32", "bf16"]
AccuracyBy = Literal["likelihood", "generated"]


@dataclass(frozen=True)
class EvalSettings:
    """Settings of `eval`. Lengths in tokens."""

    data: str
    """JSONL records of any kind: a path, or `-` for stdin."""
    model: str
    """The base GGUF."""
    adapters: tuple[AdapterInput, ...] = ()
    """Applied together, each with its scale."""
    compare: bool = False
    """Score the base without adapters, and each adapter by itself."""
    accuracy: AccuracyBy = "likelihood"
    """How a label is chosen: the likeliest beginning of an answer, or what the answer that is generated begins with."""
    llama_perplexity: bool = False
    """Of texts, whole windows of `ctx` tokens, in which the first half is context only, as llama.cpp's own tool does;
    what is left at the end is not scored."""
    labels: tuple[str, ...] = ()
    """Labels to choose from; none: those of the rows read."""
    ctx: int = 512
    """Rows longer than this are cut (text: split into windows); also the capacity of a pack."""
    stride: int | None = None
    """Windows of a text start every so many tokens; None: each token is scored once."""
    template: str | None = None
    """A chat template file; None: that of the adapters, else the model's own, else one that its tokens fit."""
    train: Train = "all"
    """Which answers of a conversation are scored; "last": the last one of each."""
    precision: Precision = "auto"
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class LabelCount:
    """Of one label: rows that carry it, rows for which it was chosen, and those of them where that is right."""

    rows: int = 0
    chosen: int = 0
    right: int = 0


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
class Score:
    """One model on the rows. `loss`: mean nats a trained token; `perplexity`: its exponential."""

    loss: float
    perplexity: float
    accuracy: Accuracy | None
    """None where no row has a label."""

    def to_json(self) -> dict[str, Any]:
        """`accuracy` as a number, the rest of it beside it; all of it absent where no row has a label."""
        values: dict[str, Any] = {"loss": self.loss, "perplexity": self.perplexity}
        if self.accuracy:
            a = self.accuracy
            values |= {"accuracy": a.accuracy, "accuracy_interval": list(a.interval), "macro_f1": a.macro_f1}
            values |= {"majority": a.majority, "labelled_rows": a.rows, "confusion": a.confusion}
            values["labels"] = {label: asdict(count) for label, count in a.labels.items()}
        return values


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
    seconds: float
    tokens_per_s: float
    row_scores: list[dict[str, Any]] = field(default_factory=list)
    """Of each row: `row` (file:line), `trained_tokens`, `loss` by model, its `label` and the one `chosen` by each."""
    notes: list[str] = field(default_factory=list)
    """Sentences worth a line: adapters of another base, rows cut or left out, labels that cannot be told apart."""

    def to_json(self) -> dict[str, Any]:
        """One object with the score's fields in it; `base` and `adapters` hold the same of each in a comparison."""
        own = {k: v for k, v in vars(self).items() if k not in ("score", "base", "adapters", "row_scores")}
        compared = {"base": self.base.to_json(), "adapters": [a.to_json() for a in self.adapters]} if self.base else {}
        return {**self.score.to_json(), **compared, **own}


@dataclass(frozen=True)
class GenerateSettings:
    """Settings of `generate`. Lengths in tokens."""

    model: str
    """The base GGUF."""
    data: str | None = None
    """Prompts as JSONL records: a path, or `-` for stdin. Either this or `prompt`."""
    prompt: str | None = None
    """One prompt: a user's turn, or with `raw` text to go on with."""
    raw: bool = False
    system: str | None = None
    """What the system says before a `prompt`, or a conversation."""
    adapters: tuple[AdapterInput, ...] = ()
    max_tokens: int = 128
    """Of an answer."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Sample among tokens at least this part as likely as the likeliest."""
    repeat_penalty: float = 1.0
    """What has been said is less likely to be said again: logits above 0 are divided by this, others multiplied."""
    repeat_window: int = 64
    """So many recent tokens, of the prompt too, count as said."""
    choices: int = 1
    """Answers to each prompt."""
    seed: int = 42
    stop: tuple[str, ...] = ()
    """An answer ends before any of these texts."""
    ctx: int = 2048
    """A prompt and its answer are no longer than this."""
    batch: int = 8
    """Rows that decode together."""
    template: str | None = None
    """A chat template file; None: that of the adapters, else the model's own, else one that its tokens fit."""
    precision: Precision = "auto"
    threads: int = 0
    device: str = "cpu"
