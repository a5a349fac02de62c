"""LoRA adapters between GGUF and PEFT (adapter_config.json and adapter_model.safetensors)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fabric.core.blocks import encode
from fabric.errors import DataError
from fabric.fields import Fields, named, short
from fabric.files import check_streams, open_folder, open_output
from fabric.huggingface.folder import Folder
from fabric.huggingface.names import EMBEDDING, HEAD, Family, family_of_architecture, of_text_model
from fabric.huggingface.patterns import Patterns
from fabric.huggingface.residual import KINDS, taken_pair
from fabric.huggingface.safetensors import Stored, read_files, write_safetensors
from fabric.notices import held, notice
from fabric.weights.adapter import Adapter, LoraPair, check_adapter, read_adapter, write_adapter
from fabric.weights.formats import is_block_format
from fabric.weights.gguf import GGUF, decode_tensor
from fabric.weights.history import join_histories, step

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OF_A, _OF_B = (-1, 1), (0, -1)  # axes of a matrix that A and B have
_PAIR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_COPY = re.compile(r"(.+?)(?:\.base_layer|\.original_module|\.modules_to_save(?:\.default)?)?\.(weight|bias)")
# Settings of PEFT that change what a pair means, and the value at which they do not; the rest is refused.
_PLAIN: dict[str, Any] = {
    "bias": "none", "fan_in_fan_out": False, "use_dora": False, "lora_bias": False, "layer_replication": None,
    "trainable_token_indices": None, "target_parameters": None, "megatron_config": None,
    "alora_invocation_tokens": None, "use_qalora": False, "use_bdlora": None, "arrow_config": None,
    "kasa_config": None, "monteclora_config": None,
}  # fmt: skip
_OLDER = ("bias", "fan_in_fan_out", "use_dora", "lora_bias", "layer_replication", "trainable_token_indices")
# Those without effect on a finished adapter: which modules it has is seen in its tensors, how it began in its values.
_INERT = frozenset(
    (
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
        "exclude_modules", "fabric_history", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
        "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type", "velora_config",
    )
)  # fmt: skip
_BEGINS_AT_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")


def adapter_from_peft(path: Path, base: str, output: str) -> Adapter:
    """Writes the GGUF adapter of a PEFT folder, for the base model `base` (a GGUF).

    Scales of single modules (rank_pattern, alpha_pattern, rank-stabilised scaling) go into B where one alpha cannot
    say them. Raises DataError, MissingInputError, OutputError.
    """
    folder = Folder(path)
    with held(), GGUF.open(base) as gguf:
        config = _Config(folder)
        family = family_of_architecture(gguf.architecture, gguf.name)
        heads = _heads(gguf) if family.pairs_rope else family.heads(gguf.metadata)
        pairs, scales = {}, {}
        for ours, (stem, both) in _pairs(folder, family, gguf, heads).items():
            pair = _pair(folder, ours, both, family, heads)
            scale = config.scale(stem, pair.rank)
            if config.kind is not None:
                taken = taken_pair(config.kind, gguf, ours, pair.rank, scale)
                pair = LoraPair(np.concatenate([pair.a, taken.a]), np.concatenate([pair.b, -taken.b], axis=1))
            pairs[ours], scales[ours] = pair, scale
        first = next(iter(pairs))
        alpha = float(np.float32(scales[first] * pairs[first].rank))
        for name, pair in pairs.items():
            extra = scales[name] / (alpha / pair.rank)
            if not math.isclose(extra, 1.0, rel_tol=1e-6):
                pairs[name] = LoraPair(pair.a, pair.b * np.float32(extra))
            if not np.isfinite(pairs[name].b).all():
                raise DataError(
                    f"{folder.path / CONFIG}: the scale {scales[name]:g} of {name} is beyond what F32 holds"
                )
        inputs: dict[str, str | list[str]] = {"base": gguf.sha256(), "adapter": folder.hashes()}
        made = step("convert", {"from": "peft"}, inputs)
        adapter = Adapter(gguf.architecture, alpha, pairs, base_sha256=gguf.sha256(), history=[made])
        check_adapter(adapter, gguf, str(folder))
    check_streams([*folder.read.values(), base], [output])
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
        family = family_of_architecture(gguf.architecture, gguf.name)
        heads = _heads(gguf) if family.pairs_rope else family.heads(gguf.metadata)
        history = join_histories(adapter.history, [step("convert", {"to": "peft"}, {"base": gguf.sha256()})])
    tensors, modules, ranks = {}, set(), {}
    for name, pair in adapter.pairs.items():
        theirs = family.theirs(name)
        if theirs is None:
            raise DataError(f"{source}: {name} has no counterpart in PEFT")
        stem = theirs.removesuffix(".weight")
        modules.add(stem.rpartition(".")[2])
        ranks[stem] = pair.rank
        tensors[f"base_model.model.{stem}.lora_A.weight"] = family.reordered(name, pair.a, heads, True, _OF_A)
        tensors[f"base_model.model.{stem}.lora_B.weight"] = family.reordered(name, pair.b, heads, True, _OF_B)
    rank = adapter.rank
    alpha = adapter.alpha or rank  # 0 is llama.cpp's word for a scale of 1
    other = {stem: r for stem, r in ranks.items() if r != rank}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(modules), "lora_dropout": 0.0, "use_rslora": False,
        "rank_pattern": other, "alpha_pattern": {} if adapter.alpha else dict(other),
        "init_lora_weights": True, "modules_to_save": None, "fabric_history": history,
        **{key: _PLAIN[key] for key in _OLDER},  # older releases of PEFT refuse what they do not know
    }  # fmt: skip
    with open_folder(output) as partial:
        with open_output(partial / WEIGHTS) as out:
            write_safetensors(out, tensors)
        with open_output(partial / CONFIG) as out:
            out.write(json.dumps(config, indent=2).encode() + b"\n")
    return replace(adapter, history=history)


def is_peft(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).exists()


class _Config:
    """adapter_config.json: what every pair is multiplied by, and what was taken out of the base (`kind`)."""

    def __init__(self, folder: Folder) -> None:
        self.fields = c = folder.json(CONFIG)
        if c.get("peft_type") != "LORA":
            raise c.error("peft_type", f"is {short(c.get('peft_type'))}; only LORA can be converted")
        for key, plain in _PLAIN.items():
            if c.get(key) != []:
                c.only(key, plain, why="a GGUF adapter cannot hold")
        init = c.get("init_lora_weights")
        init = init.lower() if isinstance(init, str) else init
        self.kind: str | None = init if init in KINDS else None
        if self.kind is None:
            why = "changes the base in a way that cannot be computed anew; save the adapter as an ordinary one in PEFT"
            c.only("init_lora_weights", *_BEGINS_AT_BASE, why=why)
        self.rank, self.alpha, self.root = c.size("r", 8), c.number("lora_alpha", 8.0), c.flag("use_rslora", False)
        self.ranks, self.alphas = c.child("rank_pattern"), c.child("alpha_pattern")
        self.rank_patterns, self.alpha_patterns = Patterns(self.ranks.values), Patterns(self.alphas.values)
        unknown = [key for key in c.rest() if key not in _INERT and c.values[key] not in (False, "", [], {})]
        if unknown:
            count = "1 setting is" if len(unknown) == 1 else f"{len(unknown)} settings are"
            notice(f"{c.where}: {count} unknown and not used: {named(unknown)}")

    def scale(self, stem: str, rank: int) -> float:
        """What PEFT multiplies B A by in the module `stem` of the file. DataError where it expects another rank."""
        try:
            ranked, weighed = self.rank_patterns.first(stem), self.alpha_patterns.first(stem)
        except DataError as error:
            raise DataError(f"{self.fields.where}: {error}") from None
        expected = self.rank if ranked is None else self.ranks.size(ranked)
        if expected != rank:
            raise DataError(f"{self.fields.where}: says rank {expected} for {stem}, whose tensors have rank {rank}")
        alpha = self.alpha if weighed is None else self.alphas.number(weighed)
        return alpha / (math.sqrt(rank) if self.root else rank)


def _pairs(
    folder: Folder, family: Family, base: GGUF, heads: dict[str, int]
) -> dict[str, tuple[str, dict[str, Stored]]]:
    """By GGUF's name of a matrix: the file's name of its module, and A and B. Whole weights beside them must be the
    base's; pairs of other parts than the text model are named in a notice."""
    found: dict[str, tuple[str, dict[str, Stored]]] = {}
    dropped = []
    for name, stored in read_files(folder, WEIGHTS, "").items():
        stem = name.removeprefix(_PREFIX)
        if stem != name and of_text_model(stem) is None:
            dropped.append(name)
            continue
        pair = _PAIR.fullmatch(stem)
        if not pair:
            _check_copy(family, base, heads, stored, stem)
            continue
        ours = family.ours(f"{of_text_model(pair[1])}.weight") if stem != name else None
        if ours is None:
            raise DataError(f"{stored.where}: {short(name)} is no LoRA pair of a {family.architecture} model's matrix")
        module, both = found.setdefault(ours, (pair[1], {}))
        if module != pair[1] or pair[2] in both:
            raise DataError(f"{stored.where}: {short(name)} is in the file twice")
        both[pair[2]] = stored
    if dropped:
        notice(f"{folder}: {len(dropped)} tensors of other parts than the text model are left out: {named(dropped, 2)}")
    if not found:
        raise DataError(f"{folder.path / WEIGHTS}: an adapter without LoRA pairs of the text model")
    return found


def _check_copy(family: Family, base: GGUF, heads: dict[str, int], stored: Stored, stem: str) -> None:
    """DataError unless a whole weight of an adapter is that of the base, which a GGUF adapter goes without."""
    matched = _COPY.fullmatch(stem)
    ours = family.ours(f"{of_text_model(matched[1])}.{matched[2]}") if matched else None
    ours = EMBEDDING if ours == HEAD and HEAD not in base.tensors else ours
    if ours is None or ours not in base.tensors:
        raise DataError(f"{stored.where}: {short(stored.name)} is nothing that a GGUF adapter can hold")
    info, advice = base.tensors[ours], "merge the adapter in PEFT (merge_and_unload) and convert the result"
    if info.shape != stored.shape:
        told = f"{short(stored.name)} is {list(stored.shape)} and {ours} {list(info.shape)} in {base.name}"
        raise DataError(f"{stored.where}: {told}: a resized model cannot be told by an adapter; {advice}")
    held = f"{stored.where}: holds the whole weight {short(stored.name)}"
    if is_block_format(info.type):
        told = f"whether it was trained cannot be seen beside {ours} in {info.type_name}"
        raise DataError(f"{held}, and {told}; give the base in F32, F16 or BF16")
    theirs = family.reordered(ours, family.converted(ours, stored.values()), heads)
    mine, plain = decode_tensor(base, ours), not family.differs(ours)
    if not (_rounded(info.type, theirs, mine) or (plain and _rounded(stored.type, mine, theirs))):
        told = f"which is not {ours} of {base.name}: it was trained, and a GGUF adapter cannot hold it"
        raise DataError(f"{held}, {told}; {advice}")


def _rounded(type: int, values: Any, expected: Any) -> bool:
    """Whether values are the expected ones once they are of a type."""
    return encode(type, values.reshape(-1, values.shape[-1])) == encode(type, expected.reshape(-1, expected.shape[-1]))


def _pair(folder: Folder, name: str, both: dict[str, Stored], family: Family, heads: dict[str, int]) -> LoraPair:
    where = folder.path / WEIGHTS
    if set(both) != {"A", "B"}:
        raise DataError(f"{where}: the pair of {name} lacks its {'B' if 'A' in both else 'A'}")
    a, b = both["A"].values(), both["B"].values()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise DataError(f"{where}: A {a.shape} and B {b.shape} of {name} are not (r, K) and (N, r)")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError(f"{where}: the pair of {name} holds NaN or infinite values")
    return LoraPair(family.reordered(name, a, heads, axes=_OF_A), family.reordered(name, b, heads, axes=_OF_B))


def _heads(gguf: GGUF) -> dict[str, int]:
    """Of modules whose rows are in another order in GGUF."""
    keys = Fields(gguf.metadata, gguf.name, "metadata ")
    arch = gguf.architecture
    layers = keys.size(f"{arch}.block_count")
    heads = keys.uniform(f"{arch}.attention.head_count", layers)
    return {"attn_q": heads, "attn_k": keys.uniform(f"{arch}.attention.head_count_kv", layers, heads)}
