"""LoRA adapters between GGUF and PEFT (adapter_config.json and adapter_model.safetensors)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fabric.errors import DataError
from fabric.files import open_folder, open_output
from fabric.huggingface.names import Family, family_of_architecture
from fabric.huggingface.safetensors import Stored, read_json, read_safetensors, write_safetensors
from fabric.weights.adapter import Adapter, LoraPair, check_adapter, read_adapter, write_adapter
from fabric.weights.gguf import GGUF
from fabric.weights.history import join_histories, step

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_COPY = re.compile(r"base_model\.model\.(model\.embed_tokens|lm_head)(\.base_layer)?\.(weight|bias)")  # frozen ones
# Settings of PEFT that change what a pair means, and the value at which they do not.
_PLAIN: dict[str, Any] = {
    "bias": "none", "fan_in_fan_out": False, "use_dora": False, "lora_bias": False, "modules_to_save": None,
    "layer_replication": None, "trainable_token_indices": None, "alora_invocation_tokens": None, "use_qalora": False,
}  # fmt: skip


def adapter_from_peft(folder: Path, base: str, output: str) -> Adapter:
    """Writes the GGUF adapter of a PEFT folder, for the base model `base` (a GGUF).

    Scales of single modules (rank_pattern, alpha_pattern, rank-stabilised scaling) go into B where one alpha cannot
    say them. Raises DataError, MissingInputError, OutputError.
    """
    config = _config(folder)
    with GGUF.open(base) as gguf:
        family, heads = family_of_architecture(gguf.architecture, gguf.name), _heads(gguf)
        parts: dict[str, dict[str, Stored]] = {}
        for name, stored in read_safetensors(folder / WEIGHTS).items():
            if _COPY.fullmatch(name):
                continue
            ours, part = _ours(family, folder, name)
            parts.setdefault(ours, {})[part] = stored
        if not parts:
            raise DataError(f"{folder / WEIGHTS}: an adapter without tensors")
        pairs, scales = {}, {}
        for ours, both in parts.items():
            pairs[ours] = _pair(folder, ours, both, family, heads)
            scales[ours] = _scale(config, str(family.theirs(ours)).removesuffix(".weight"), pairs[ours].rank)
        first = next(iter(pairs))
        alpha = float(np.float32(scales[first] * pairs[first].rank))
        for name, pair in pairs.items():
            extra = scales[name] / (alpha / pair.rank)
            if not math.isclose(extra, 1.0, rel_tol=1e-6):
                pairs[name] = LoraPair(pair.a, pair.b * np.float32(extra))
        made = step("convert", {"from": "peft"}, {"base": gguf.sha256()})
        adapter = Adapter(gguf.architecture, alpha, pairs, base_sha256=gguf.sha256(), history=[made])
        check_adapter(adapter, gguf, str(folder))
    with open_output(output) as out:
        write_adapter(out, adapter)
    return adapter


def adapter_to_peft(source: str, base: str, output: Path) -> Adapter:
    """Writes a GGUF adapter as a PEFT folder, which appears only when complete.

    Raises DataError, MissingInputError, OutputError, and UsageError when the folder exists already.
    """
    adapter = read_adapter(source)
    with GGUF.open(base) as gguf:
        check_adapter(adapter, gguf, source)
        family, heads = family_of_architecture(gguf.architecture, gguf.name), _heads(gguf)
        history = join_histories(adapter.history, [step("convert", {"to": "peft"}, {"base": gguf.sha256()})])
    tensors, modules, ranks = {}, set(), {}
    for name, pair in adapter.pairs.items():
        theirs = family.theirs(name)
        if theirs is None:
            raise DataError(f"{source}: {name} has no counterpart in PEFT")
        stem = theirs.removesuffix(".weight")
        modules.add(stem.rpartition(".")[2])
        ranks[stem] = pair.rank
        tensors[f"base_model.model.{stem}.lora_A.weight"] = pair.a
        tensors[f"base_model.model.{stem}.lora_B.weight"] = family.reordered(name, pair.b, heads, back=True)
    rank = adapter.rank
    alpha = adapter.alpha or rank  # 0 is llama.cpp's word for a scale of 1
    other = {stem: r for stem, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(modules), "lora_dropout": 0.0, "use_rslora": False,
        "rank_pattern": other, "alpha_pattern": {} if adapter.alpha else dict(other),
        "init_lora_weights": True, **_PLAIN, "fabric_history": history,
    }  # fmt: skip
    del config["alora_invocation_tokens"], config["use_qalora"]  # older releases of PEFT refuse what they do not know
    with open_folder(output) as partial:
        with open_output(partial / WEIGHTS) as out:
            write_safetensors(out, tensors)
        with open_output(partial / CONFIG) as out:
            out.write(json.dumps(config, indent=2).encode() + b"\n")
    return replace(adapter, history=history)


def is_peft(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).exists()


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise DataError(f"{folder / CONFIG}: a {config.get('peft_type')} adapter; only LORA can be converted")
    for key, plain in _PLAIN.items():
        if config.get(key, plain) not in (plain, None, []):
            raise DataError(f"{folder / CONFIG}: {key} is {config[key]!r}, which a GGUF adapter cannot say")
    return config


def _ours(family: Family, folder: Path, name: str) -> tuple[str, str]:
    """GGUF's tensor name of a PEFT tensor, and which of the pair it is."""
    found = _NAME.fullmatch(name)
    stem = found[1].replace("model.language_model.", "model.") if found else ""
    ours = family.ours(f"{stem}.weight") if found else None
    if found is None or ours is None:
        raise DataError(f"{folder / WEIGHTS}: {name} is no LoRA pair of a {family.architecture} model's matrix")
    return ours, found[2]


def _pair(folder: Path, name: str, both: dict[str, Stored], family: Family, heads: dict[str, int]) -> LoraPair:
    if set(both) != {"A", "B"}:
        raise DataError(f"{folder / WEIGHTS}: the pair of {name} lacks its {'B' if 'A' in both else 'A'}")
    a, b = both["A"].values(), both["B"].values()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise DataError(f"{folder / WEIGHTS}: A {a.shape} and B {b.shape} of {name} are not (r, K) and (N, r)")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError(f"{folder / WEIGHTS}: the pair of {name} holds NaN or infinite values")
    return LoraPair(a, family.reordered(name, b, heads))


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies B A by; patterns match the end of a module's name."""

    def pattern(key: str) -> Any:
        table = config.get(key) or {}
        return next((v for k, v in table.items() if re.fullmatch(rf"(.*\.)?({k})", module)), None)

    alpha = pattern("alpha_pattern")
    alpha = config.get("lora_alpha", 8) if alpha is None else alpha
    if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha <= 0:
        raise DataError(f"adapter_config.json: lora_alpha is {alpha!r}, no positive number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _heads(gguf: GGUF) -> dict[str, int]:
    heads = gguf.get(f"{gguf.architecture}.attention.head_count", int)
    return {"attn_q": heads, "attn_k": gguf.get(f"{gguf.architecture}.attention.head_count_kv", int, heads)}
