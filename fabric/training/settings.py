"""What a training run is told: one plain object, kept in the run directory so that `resume` needs nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from fabric.errors import DataError
from fabric.text.conversation import Train

ATTENTION_MODULES = ("attn_q", "attn_k", "attn_v", "attn_output")
FFN_MODULES = ("ffn_gate", "ffn_up", "ffn_down")
ALL_MODULES = ATTENTION_MODULES + FFN_MODULES
MODULES = (*ALL_MODULES, "output")

Schedule = Literal["constant", "linear", "cosine", "exponential"]
Precision = Literal["auto", "f32", "bf16"]
Frozen = Literal["auto", "blocks", "16bit"]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `train`. Units: lengths in tokens, `batch` in rows an optimizer step."""

    data: str
    """JSONL records: a path, or `-` for stdin."""
    model: str
    """The base GGUF."""
    output: str | None = None
    """Where the adapter or model goes: a path, or `-` for stdout."""
    full: bool = False
    """Train whole weights and write a model; False: LoRA pairs, and an adapter."""
    type: str | None = None
    """Of a whole model's matrices; None: their own, BF16 for those in block formats; "keep": always their own."""
    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    """The scale of the pairs is alpha / sqrt(rank), not alpha / rank (https://arxiv.org/abs/2312.03732)."""
    dropout: float = 0.0
    """Share of what a pair's first matrix sees that is dropped in a step."""
    modules: tuple[str, ...] = ALL_MODULES
    seed: int = 42
    adapter: str | None = None
    """An adapter to start from; its rank, alpha and modules then hold."""
    epochs: float = 1.0
    steps: int | None = None
    """Optimizer steps; overrides `epochs`."""
    lr: float = 2e-4
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    """Overrides `warmup_ratio`."""
    lr_min: float = 0.0
    """Where the schedule ends; the exponential one needs an end above 0 and takes lr / 100 for it."""
    lora_plus: float = 1.0
    """The rate of a pair's B is so many times that of its A (LoRA+, https://arxiv.org/abs/2402.12354)."""
    neftune: float = 0.0
    """Noise on embeddings, as a multiple of 1 / sqrt(length * width) (https://arxiv.org/abs/2310.05914)."""
    weight_decay: float = 0.01
    """Decoupled; norms and biases do not decay."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    batch: int = 8
    ctx: int = 512
    """Rows longer than this are cut (text: split into windows)."""
    stride: int | None = None
    """Windows of a long text start every so many tokens; None: such that every token is trained once."""
    accumulate: int = 1
    """Lay a batch out in at least this many micro-batches; the result is the same."""
    pack: bool = True
    shuffle: bool = True
    template: str | None = None
    """A chat template file; None: the adapter's, else the model's own, else one that its tokens fit."""
    train: Train = "all"
    """Which answers of a conversation train; "last": the last one of each, up to which its text then goes."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a row that cannot be read or rendered."""
    precision: Precision = "auto"
    """auto: as the device's profile says, else bf16 where the device gains from it."""
    weights: Frozen = "auto"
    """Frozen weights of products: as the file has them, or decoded once to 16 bits. auto: as the device's profile says,
    else 16 bits in bf16 precision where the device gains from it and has room."""
    checkpointing: bool | None = None
    """Recompute activations in backward; the same bits for less memory and more time. None: as the device's profile
    says, else where they would leave the device little memory."""
    micro_batch: int | None = None
    """Rows are packed into at most this many tokens, fewer where memory is short; None: as the device's profile says,
    else `ctx`."""
    threads: int = 0
    device: str = "cpu"
    val: str | None = None
    """Validation rows: a path, or a fraction of the training rows such as `0.05` (a file of that name: `./0.05`)."""
    eval_every: int = 0
    """Validate every this many steps; 0: after each epoch. Needs `val`."""
    patience: int = 0
    """Stop after so many validations without a new best one, and write the best; 0: never, and the last is written."""
    checkpoint_every: int = 0
    """Checkpoint every this many steps; 0: after each epoch and at the end."""
    checkpoint_minutes: float = 0.0
    """Checkpoint when so many minutes have passed since the last one, too; 0: only by steps."""
    keep: int = 2
    """Checkpoints that stay."""
    run_dir: str | None = None
    """Default: .fabric/runs/<a name from the settings and the time>."""
    metrics: str | None = None
    """JSONL, one object a step; a path, or `-` for stdout."""

    @property
    def val_fraction(self) -> float | None:
        """The number that `val` is, where it is one."""
        try:
            return float(self.val) if self.val else None
        except ValueError:
            return None

    @property
    def files(self) -> dict[str, str]:
        """What is read, by setting; `-` is stdin."""
        paths = {name: getattr(self, name) for name in ("data", "model", "adapter", "val", "template")}
        return {name: path for name, path in paths.items() if path and (name != "val" or self.val_fraction is None)}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    def fingerprints(self, extended: Sequence[Sequence[object]] = ()) -> dict[str, str]:
        """The start of a SHA-256 of each setting that the result depends on, or that says where it goes, so that a
        change can be named; and of the ends that a run had before. Files are told apart by their content."""
        none = {*_NO_RESULT, *self.files} - ({"eval_every"} if self.patience else set())
        told = {k: v for k, v in self.to_json().items() if k not in none} | {"extended": [*map(list, extended)]}
        return {k: hashlib.sha256(f"{k}={json.dumps(v)}".encode()).hexdigest()[:16] for k, v in sorted(told.items())}

    @staticmethod
    def from_json(values: dict[str, Any]) -> TrainSettings:
        """Inverse of `to_json`. Raises DataError for a name that no setting has, and for a value of another type."""
        kinds = get_type_hints(TrainSettings)
        for name, value in values.items():
            if name not in kinds:
                raise DataError(f"there is no setting {name!r}")
            if not _is_of(value, kinds[name]):
                raise DataError(f"the setting {name} is {json.dumps(value)[:40]}")
        missing = kinds.keys() - values.keys()
        if missing:
            raise DataError(f"the settings {', '.join(sorted(missing))} are missing")
        return TrainSettings(**{**values, "modules": tuple(values["modules"])})


def _is_of(value: object, kind: Any) -> bool:
    """Whether a JSON value is of a setting's type."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(value, str):
        try:
            return kind is str and b"\0" not in os.fsencode(value)
        except UnicodeError:
            return False
    return type(value) in ((float, int) if kind is float else (kind,))


_NO_RESULT = {
    "run_dir", "threads", "eval_every", "checkpoint_every", "checkpoint_minutes", "checkpointing", "keep", "data",
    "model", "adapter", "template",
}  # fmt: skip


class TrainUI(Protocol):
    """What a run tells while it runs. The command line draws it; tests count it."""

    def start(self, info: dict[str, Any]) -> None:
        """Once, before the first step: rows, tokens, steps, trained_params, planned_bytes, device, run_dir ..."""

    def message(self, text: str) -> None:
        """A sentence worth a line: rows cut, rows with nothing to train on, a checkpoint written."""

    def progress(self, fraction: float) -> None:
        """Often: the part of the current step that is done, 0 .. 1."""

    def step(self, metrics: dict[str, Any]) -> None:
        """After each optimizer step: the metrics record."""

    def interrupted(self) -> bool:
        """Asked often; True stops the run at the last whole optimizer step."""
        ...


@dataclass(frozen=True)
class TrainReport:
    """What a finished run came to."""

    steps: int
    loss: float
    val_loss: float | None
    """Of what was written: with `patience` the best one, else the last."""
    best_step: int | None
    """With `patience`: the step whose parameters were written."""
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_s: float
    peak_bytes: int
    kind: str
    """What was written: "adapter" or "model"."""
    output_bytes: int
    run_dir: str
    output: str
    """The file written; `-` for stdout."""
    metrics: str | None
    """Where metrics went, besides the run directory."""
    sha256: str
    """Of it."""
