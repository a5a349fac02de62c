"""Flags as other trainers call them (PEFT, TRL, Unsloth, axolotl, LLaMA-Factory, mlx-lm), and what they are here."""

from __future__ import annotations

from collections.abc import Sequence

HERE = {
    "lr": "learning-rate",
    "schedule": "lr-scheduler-type lr-scheduler lr-schedule",
    "rank": "r lora-r lora-rank",
    "alpha": "lora-alpha",
    "dropout": "lora-dropout",
    "rslora": "use-rslora peft-use-rslora",
    "modules": "target-modules lora-target-modules lora-target",
    "full": "fine-tune-type finetuning-type full-finetuning",
    "epochs": "num-epochs num-train-epochs",
    "steps": "max-steps iters",
    "ctx": "max-seq-length max-seq-len max-length sequence-len cutoff-len",
    "batch": "batch-size per-device-train-batch-size micro-batch-size",
    "clip": "max-grad-norm",
    "neftune": "neftune-noise-alpha",
    "pack": "packing sample-packing",
    "checkpointing": "gradient-checkpointing grad-checkpoint",
    "optimizer": "optim",
    "val": "val-set-size val-size eval-dataset",
    "eval-every": "eval-steps steps-per-eval",
    "checkpoint-every": "save-steps save-every",
    "keep": "save-total-limit",
    "run-dir": "output-dir",
    "output": "adapter-path",
    "adapter": "resume-adapter-file lora-model-dir adapter-name-or-path",
    "model": "model-name-or-path base-model model-name",
    "precision": "bf16 fp16 dtype",
    "metrics": "report-to logging-dir",
}
"""Their names, by our flag."""

OTHERWISE = {
    "gradient-accumulation-steps": "is not needed: --batch is the rows of an optimizer step, however many fit at once",
    "resume-from-checkpoint": "is a command here: fabric resume RUN",
    "load-in-4bit": "is not needed: a quantized GGUF trains as it is",
    "disable-gradient-checkpointing": "is --no-checkpointing here",
    "data": "has no flag here: the rows stand by themselves, as in fabric train rows.jsonl",
    "dataset": "has no flag here: the rows stand by themselves, as in fabric train rows.jsonl",
}
_OURS = {name: ours for ours, names in HERE.items() for name in names.split()}


def hint(flag: str, known: Sequence[str] = (), value: str | None = None) -> str | None:
    """What a foreign flag is here, where one of the `known` flags (none: all) stands for it. `value`: what was typed
    behind it."""
    name = flag.lstrip("-").replace("_", "-").lower()
    ours = _OURS.get(name)
    if name in OTHERWISE:
        return f"{flag} {OTHERWISE[name]}"
    if ours is None or (known and ours not in known):
        return None
    return f"{flag} is --{ours} here{_modules(value) if ours == 'modules' and value else ''}"


def _modules(value: str) -> str:
    from fabric.training.settings import FOREIGN_MODULES

    names = [name for name in value.replace(",", " ").split() if name]
    ours = dict.fromkeys(FOREIGN_MODULES.get(name, name) for name in names)
    return f": --modules {','.join(ours)}"
