"""Mistral's own format of a checkpoint: params.json, consolidated*.safetensors and tekken.json or tokenizer.model.

Rows of queries and keys lie there as GGUF has them, in pairs.
"""

from __future__ import annotations

import re

from fabric.errors import DataError
from fabric.fields import Fields, short
from fabric.huggingface.checkpoint import Checkpoint, complete
from fabric.huggingface.config import read_settings
from fabric.huggingface.folder import Folder
from fabric.huggingface.names import EMBEDDING, HEAD, NORM
from fabric.huggingface.safetensors import INDEX, SINGLE, Stored, read_files
from fabric.notices import notice

PARAMS, WEIGHTS, WEIGHTS_INDEX = "params.json", "consolidated.safetensors", "consolidated.safetensors.index.json"
_TOP = {"tok_embeddings": EMBEDDING, "norm": NORM, "output": HEAD}
_LAYER = {
    "attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v", "attention.wo": "attn_output",
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}  # fmt: skip
_NAME = re.compile(r"(?:layers\.(0|[1-9]\d{0,5})\.)?([a-z_0-9.]+)\.weight")
_CONTEXT = 32768  # where params.json does not say
_OTHERS = ("max_batch_size", "max_position_embeddings", "max_seq_len", "model_type", "use_biases")


def is_native(folder: Folder) -> bool:
    """Whether a folder is one that transformers cannot load, and Mistral's own code can."""
    return folder.has(PARAMS) and not folder.has(SINGLE) and not folder.has(INDEX)


def read_checkpoint(folder: Folder) -> Checkpoint:
    """The checkpoint of a folder. Raises DataError, MissingInputError."""
    params = folder.json(PARAMS)
    context = params.size("max_position_embeddings", params.size("max_seq_len", 0))
    if not context:
        context = _CONTEXT
        notice(f"{params.where}: does not say how long a text may be, so the context is {context} tokens")
    params.only("use_biases", False, why="is not supported")
    config = {
        "model_type": "mistral",
        "hidden_size": params.size("dim"),
        "num_hidden_layers": params.size("n_layers"),
        "num_attention_heads": params.size("n_heads"),
        "num_key_value_heads": params.size("n_kv_heads", params.size("n_heads")),
        "head_dim": params.size("head_dim", None) if "head_dim" in params else None,
        "intermediate_size": params.size("hidden_dim"),
        "rms_norm_eps": params.number("norm_eps", most=1.0),
        "vocab_size": params.size("vocab_size"),
        "rope_theta": params.number("rope_theta", 10000.0),
        "sliding_window": params.size("sliding_window", 0) or None,
        "max_position_embeddings": context,
        "tie_word_embeddings": params.flag("tied_embeddings", False),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    unknown = [key for key in params.rest() if key not in _OTHERS and params.values[key] not in (False, "", [], {})]
    if unknown:
        raise params.error(unknown[0], f"is {short(params.values[unknown[0]])}, which cannot be converted")
    settings = read_settings(Fields(config, params.where))
    found: dict[str, Stored] = {}
    for name, tensor in read_files(folder, WEIGHTS, WEIGHTS_INDEX).items():
        matched = _NAME.fullmatch(name)
        module = (_LAYER if matched[1] else _TOP).get(matched[2]) if matched else None
        if matched is None or module is None:
            raise DataError(f"{tensor.where}: the tensor {short(name)} has no place in a llama model")
        found[f"blk.{matched[1]}.{module}.weight" if matched[1] else module] = tensor
    return Checkpoint(settings, complete(folder, settings, found), [])
