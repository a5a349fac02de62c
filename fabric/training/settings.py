"""Settings of `train` and `bench`: plain objects. Those of a run are kept in its directory, so that `resume` needs
nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Protocol, get_type_hints

from fabric.errors import DataError
from fabric.settings import (
    CONTEXT,
    METRICS,
    ROWS,
    STRIDE,
    Checkpointing,
    Context,
    Device,
    Frozen,
    Model,
    OnError,
    Precision,
    Records,
    Seed,
    Setting,
    Template,
    Threads,
    Train,
    fingerprinted,
    is_number,
    is_of,
    paths,
)
from fabric.training.dealing import shares_of
from fabric.weights.settings import TYPES

ALL = "all"  # every linear layer of a model's blocks
USUAL = "usual"  # the ones that train where nobody says which
TRACKERS = ("tensorboard", "wandb", "mlflow")

Schedule = Literal["constant", "linear", "cosine", "exponential"]


FOREIGN_MODULES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down", "qkv_proj": "attn_qkv", "gate_up_proj": "ffn_up", "lm_head": "output",
    "in_proj": "shortconv.in_proj", "out_proj": "attn_output,shortconv.out_proj", "w1": "ffn_gate", "w2": "ffn_down",
    "w3": "ffn_up", "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj", "in_proj_qkv": "attn_qkv",
    "in_proj_z": "attn_gate", "in_proj_b": "ssm_beta", "in_proj_a": "ssm_alpha", "all-linear": "all",
}  # fmt: skip
"""Names of Hugging Face, and ours."""
_OURS = dict.fromkeys(",".join(FOREIGN_MODULES.values()).split(","))


def modules_of(text: str) -> tuple[str, ...]:
    """Names of modules and of groups; which of them there are depends on the model. ValueError for an empty one, and
    for one of Hugging Face's."""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError("a name is missing between the commas")
    for name in names:
        if name in FOREIGN_MODULES:
            raise ValueError(f"{name} is called {FOREIGN_MODULES[name]} in a GGUF")
    return tuple(dict.fromkeys(names))


def trackers_of(text: str) -> tuple[str, ...]:
    """Trackers by name. ValueError for one that does not exist, with the nearest."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in TRACKERS and names != ("none",):
            close = get_close_matches(name, TRACKERS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TRACKERS)}"
            raise ValueError(f"there is no tracker {name!r}; {hint}")
    return () if names == ("none",) else names


Rank = Annotated[int, Setting("LoRA rank", "N", low=1, only="lora", always=True)]
Modules = Annotated[
    tuple[str, ...],
    Setting(
        "attn, ffn, all, or names such as attn_q,ffn_up, joined by commas; usual: all, but of experts attn", "NAMES",
        only="lora", always=True, parse=modules_of, written=USUAL,
        completes=(USUAL, "attn", "conv", "delta", "ffn", "ple", *_OURS, "ssm_out"),
    ),
]  # fmt: skip
BATCH = Setting("rows per optimizer step; default: by the number of rows", "ROWS", low=1, always=True)
LONGEST = replace(CONTEXT, help="longest row; default: as the rows need, from 512 to 2048")
OUTPUT = Setting(
    "the adapter or model; `-`: stdout; default: in --run-dir", "FILE", short="-o", path="out", touches="place"
)
RATE = Setting("peak learning rate; default: by model size, lower with --full", "X", above=0.0, always=True)
EPOCHS = Setting("passes over the rows; default: by their number", "X", above=0.0, always=True)
TRACK = Setting(
    "metrics also to tensorboard, wandb, mlflow, joined by commas; each needs its package", "NAMES", touches="layout",
    parse=trackers_of, written="none", group="Output", completes=TRACKERS,
)  # fmt: skip
STEPS = Setting("optimizer steps, instead of --epochs", "N", low=1, always=True)


@dataclass(frozen=True)
class TrainSettings:
    """`fabric train DATA -m MODEL`. Units: lengths in tokens, `batch` in rows per optimizer step. The model and
    the rows decide what is None by default."""

    data: Records
    model: Model
    output: Annotated[str | None, OUTPUT] = None
    full: Annotated[bool, Setting("train all weights and write a model, instead of a LoRA adapter")] = False
    type: Annotated[
        str | None,
        Setting(
            "matrix type of the --full output, or keep; default: unchanged, quantized ones become bf16", "TYPE",
            only="full", always=True, parse=str.lower, completes=("keep", *TYPES),
        ),
    ] = None  # fmt: skip
    rank: Rank = 16
    alpha: Annotated[float, Setting("LoRA scale is alpha / rank", "X", low=1e-37, only="lora", always=True)] = 32.0
    """A 32-bit number below the bound would lose digits, or be 0 in the adapter."""
    rslora: Annotated[bool, Setting("LoRA scale is alpha / sqrt(rank)", only="lora")] = False
    """https://arxiv.org/abs/2312.03732"""
    dropout: Annotated[
        float, Setting("LoRA dropout: share of the input that is dropped", "SHARE", low=0.0, high=0.999, only="lora")
    ] = 0.0
    modules: Modules = (USUAL,)
    seed: Seed = 42
    adapter: Annotated[
        str | None,
        Setting(
            "start from this adapter: its rank, alpha and modules hold", "GGUF", short="-a", path="in", only="lora"
        ),
    ] = None
    epochs: Annotated[float | None, EPOCHS] = None
    steps: Annotated[int | None, STEPS] = None
    lr: Annotated[float | None, RATE] = None
    schedule: Annotated[Schedule, Setting("learning rate schedule", always=True, group="Schedule")] = "cosine"
    warmup_ratio: Annotated[
        float, Setting("warmup, as a share of the steps", "X", low=0.0, high=1.0, always=True, group="Schedule")
    ] = 0.1
    warmup_steps: Annotated[int | None, Setting("instead of --warmup-ratio", "N", low=0, group="Schedule")] = None
    lr_min: Annotated[
        float,
        Setting(
            "learning rate at the end of the schedule; exponential: 0 means lr / 100", "X", low=0.0, group="Schedule"
        ),
    ] = 0.0
    lora_plus: Annotated[
        float, Setting("LoRA+: learning rate of B over that of A", "RATIO", above=0.0, only="lora")
    ] = 1.0
    """https://arxiv.org/abs/2402.12354"""
    neftune: Annotated[
        float, Setting("noise on embeddings, such as 5; 0: none", "ALPHA", low=0.0, group="Schedule")
    ] = 0.0
    """As a multiple of 1 / sqrt(length * width) (https://arxiv.org/abs/2310.05914)."""
    weight_decay: Annotated[
        float,
        Setting("decoupled weight decay, not of norms and biases", "X", low=0.0, always=True, group="Schedule"),
    ] = 0.01
    clip: Annotated[float, Setting("largest gradient norm; 0: any", "X", low=0.0, always=True, group="Schedule")] = 1.0
    optimizer: Annotated[Literal["adamw", "sgd"], Setting("optimizer", always=True, group="Schedule")] = "adamw"
    batch: Annotated[int | None, BATCH] = None
    ctx: Annotated[int | None, LONGEST] = None
    """Rows longer than this are cut (text: split into windows)."""
    stride: Annotated[int | None, STRIDE] = None
    """None: every token is trained once."""
    accumulate: Annotated[
        int,
        Setting("micro-batches per step, at least; same result", "N", low=1, always=True, group="Memory and device"),
    ] = 1
    sync_every: Annotated[
        int,
        Setting(
            "with several ranks: average their parameters every N steps, not gradients each step", "N", low=1,
            group="Memory and device",
        ),
    ] = 1  # fmt: skip
    rank_shares: Annotated[
        str | None,
        Setting(
            "with several ranks: share of the rows of each, such as 100,40; default: by speed where devices differ",
            "SHARES", group="Memory and device", parse=shares_of,
        ),
    ] = None  # fmt: skip
    pack: Annotated[
        bool,
        Setting(
            "pack several rows into one sequence; they do not see each other", always=True, group="Memory and device"
        ),
    ] = True
    shuffle: Annotated[bool, Setting("shuffle the rows in each epoch", always=True, group="Data")] = True
    template: Template = None
    train: Train = "all"
    on_error: OnError = "stop"
    precision: Precision = "auto"
    weights: Frozen = "auto"
    checkpointing: Checkpointing = None
    micro_batch: int | None = None
    """Rows are packed into at most this many tokens, fewer where memory is short; None: as the device's profile says,
    else `ctx`. The profile's alone: no flag."""
    threads: Threads = 0
    device: Device = "auto"
    val: Annotated[
        str | None,
        Setting(
            "validation rows, or a share of the training rows", "FILE|FRACTION", path="in", number=True, group="Data"
        ),
    ] = None
    """A file that is called like a number: `./0.05`."""
    eval_every: Annotated[
        int, Setting("validate every N steps; 0: after each epoch", "STEPS", low=0, touches="layout", group="Data")
    ] = 0
    sample: Annotated[
        str | None,
        Setting(
            "rows whose prompts are answered while training: the first 4", "FILE", path="in", touches="layout",
            group="Data", completes=ROWS,
        ),
    ] = None  # fmt: skip
    sample_every: Annotated[
        int,
        Setting("answer --sample every N steps; 0: after each epoch", "STEPS", low=0, touches="layout", group="Data"),
    ] = 0
    """And before the first step, and at the end."""
    patience: Annotated[
        int,
        Setting(
            "stop after N validations without a better one, and write the best; 0: never", "N", low=0, group="Data"
        ),
    ] = 0
    checkpoint_every: Annotated[
        int, Setting("checkpoint every N steps; 0: after each epoch", "STEPS", low=0, touches="layout", group="Output")
    ] = 0
    checkpoint_minutes: Annotated[
        float,
        Setting("also checkpoint every X minutes; 0: by steps only", "X", low=0.0, touches="layout", group="Output"),
    ] = 0.0
    keep: Annotated[
        int, Setting("number of newest checkpoints to keep", "N", low=1, touches="layout", group="Output")
    ] = 2
    run_dir: Annotated[
        str | None,
        Setting("run directory; default: a new folder in .fabric/runs", "DIR", path="out", touches="layout"),
    ] = None
    name: Annotated[
        str | None,
        Setting("name of the run, and of its folder in .fabric/runs", "NAME", touches="task", group="Output"),
    ] = None
    metrics: Annotated[str | None, METRICS] = None
    track: Annotated[tuple[str, ...], TRACK] = ()

    @property
    def val_fraction(self) -> float | None:
        """The number that `val` is, where it is one."""
        return float(self.val) if self.val and is_number(self.val) else None

    @property
    def files(self) -> dict[str, str]:
        """What is read, by setting; `-` is stdin."""
        return {name: one for name, (one,) in paths(self, "in").items()}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    def fingerprints(self, extended: Sequence[Sequence[object]] = ()) -> dict[str, str]:
        """The start of a SHA-256 of each setting that the result depends on, or that says where it goes, so that a
        change can be named; and of the ends that a run had before. Files are compared by content."""
        known = {*fingerprinted(self), *(["eval_every"] if self.patience else [])}
        told = {k: v for k, v in self.to_json().items() if k in known} | {"extended": [*map(list, extended)]}
        return {k: hashlib.sha256(f"{k}={json.dumps(v)}".encode()).hexdigest()[:16] for k, v in sorted(told.items())}


@dataclass(frozen=True, kw_only=True)
class RunSettings(TrainSettings):
    """The settings of a run, which leave nothing open that its result depends on; see fabric/training/defaults.py."""

    epochs: Annotated[float, EPOCHS]
    lr: Annotated[float, RATE]
    batch: Annotated[int, BATCH]
    ctx: Annotated[int, LONGEST]

    @staticmethod
    def from_json(values: dict[str, Any]) -> RunSettings:
        """Inverse of `to_json`. Raises DataError for a name that no setting has, and for a value of another type."""
        kinds = get_type_hints(RunSettings)
        for name, value in values.items():
            if name not in kinds:
                raise DataError(f"there is no setting {name!r}")
            if not is_of(value, kinds[name]):
                raise DataError(f"the setting {name} is {json.dumps(value)[:40]}")
        missing = kinds.keys() - values.keys()
        if missing:
            raise DataError(f"the settings {', '.join(sorted(missing))} are missing")
        told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return RunSettings(**told)


@dataclass(frozen=True)
class BenchSettings:
    """`fabric bench -m MODEL`: `batch` rows of `ctx` tokens a step, `rows_at_once` of them in a micro-batch (0: all);
    every token trained, or each `trained_every`-th.
    """

    model: Model
    ctx: Context = 512
    batch: Annotated[int, replace(BATCH, help="rows per step")] = 1
    rows_at_once: Annotated[int, Setting("rows per micro-batch; 0: all", "N", low=0)] = 0
    trained_every: Annotated[int, Setting("every Nth token trains", "N", low=1)] = 1
    rank: Rank = TrainSettings.rank
    modules: Modules = TrainSettings.modules
    precision: Precision = "auto"
    weights: Frozen = "auto"
    checkpointing: Checkpointing = None
    steps: Annotated[int, Setting("timed steps; the median counts", "N", low=1)] = 3
    threads: Threads = 0
    device: Device = "auto"
    isa: Annotated[
        str | None,
        Setting(
            "CPU: generic, avx2, avx512, avx512_bf16, neon or neon_bf16",
            "NAME",
            completes=("generic", "avx2", "avx512", "avx512_bf16", "neon", "neon_bf16"),
        ),
    ] = None


class TrainUI(Protocol):
    """What a run tells while it runs. The command line draws it; tests count it."""

    def start(self, info: dict[str, Any]) -> None:
        """Once, before the first step: rows, tokens, steps, trained_params, planned_bytes, device, run_dir ..."""

    def message(self, text: str) -> None:
        """A sentence worth a line: rows cut, rows with nothing to train on, a checkpoint written."""

    def progress(self, what: str, fraction: float) -> None:
        """Often: the part that is done, 0 .. 1, of a "step", or of the "validation" or the "samples" after it."""

    def step(self, metrics: dict[str, Any]) -> None:
        """After each optimizer step: the metrics record, before a validation joins it."""

    def validated(self, result: dict[str, Any]) -> None:
        """After each validation: step, val_loss, and best_step with best_loss, those of the best one so far."""

    def sampled(self, samples: list[dict[str, Any]]) -> None:
        """After the answers to `sample` rows: step, prompt, answer, and expected where the row has an answer."""

    def interrupted(self) -> bool:
        """Asked often; True stops the run at the last whole optimizer step."""
        ...


class Silent:
    """A TrainUI that prints nothing and never stops."""

    def start(self, info: dict[str, Any]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def progress(self, what: str, fraction: float) -> None:
        """Nothing."""

    def step(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def validated(self, result: dict[str, Any]) -> None:
        """Nothing."""

    def sampled(self, samples: list[dict[str, Any]]) -> None:
        """Nothing."""

    def interrupted(self) -> bool:
        """Never."""
        return False


SILENT = Silent()


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
    model: str
    """The base, by the name that the run has for it."""
    chat: bool
    """Whether conversations trained, so that a conversation is what it answers."""
    output_bytes: int
    run_dir: str
    output: str
    """The file written; `-` for stdout."""
    device: str
    """The name by which it was opened."""
    metrics: str | None
    """Where metrics went, besides the run directory."""
    sha256: str
    """Of it."""
