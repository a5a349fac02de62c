"""Tiny checkpoints and PEFT adapters written by hand, without torch, as dictionaries that tests change before they are
written to a folder."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

LETTERS = [*"abcdefgh", "Ġ", "ab", "<s>", "</s>"]
WIDTH, HEADS, KV_HEADS, FFN = 8, 2, 1, 12


@dataclass
class Files:
    """JSON files by name, and the tensors of one safetensors file. A value of bytes is written as it is."""

    json: dict[str, Any]
    tensors: dict[str, Array]
    weights: str = "model.safetensors"
    header: dict[str, Any] = field(default_factory=dict)  # entries that take the place of true ones

    def write(self, folder: Path) -> Path:
        """Writes the folder and returns it."""
        folder.mkdir(exist_ok=True)
        for name, told in self.json.items():
            (folder / name).write_bytes(told if isinstance(told, bytes) else json.dumps(told).encode())
        (folder / self.weights).write_bytes(safetensors(self.tensors, self.header))
        return folder


def safetensors(tensors: dict[str, Array], lies: dict[str, Any] | None = None) -> bytes:
    """A file of F32 tensors; `lies` replaces entries of its header."""
    header: dict[str, Any] = {}
    body = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    told = json.dumps({**header, **(lies or {})}).encode()
    return struct.pack("<Q", len(told)) + told + body


def tokenizer_json() -> dict[str, Any]:
    """Byte-level BPE over a few letters."""
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 10, "content": "<s>", "special": True}, {"id": 11, "content": "</s>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [10], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {text: i for i, text in enumerate(LETTERS)}, "merges": [["a", "b"]],
        },
    }  # fmt: skip


def pieces_json() -> dict[str, Any]:
    """A SentencePiece vocabulary as a tokenizer.json."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a"]
    return {
        "added_tokens": [], "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None, "post_processor": None,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "merges": ["▁ a"],
            "vocab": {text: i for i, text in enumerate(tokens)},
        },
    }  # fmt: skip


def tekken_json() -> dict[str, Any]:
    """Mistral's file: bytes and one token of two, behind three special tokens."""
    from fabric.huggingface.bpe import TEKKEN

    tokens = [*(bytes([byte]) for byte in range(256)), b"ab"]
    return {
        "config": {"pattern": TEKKEN, "default_vocab_size": 260, "default_num_special_tokens": 3, "version": "v7"},
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
    }  # fmt: skip


def checkpoint(vocab: int = len(LETTERS), seed: int = 0) -> Files:
    """A llama of one layer."""
    rng, kv = np.random.default_rng(seed), WIDTH // HEADS * KV_HEADS
    layer = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH),
        "mlp.down_proj": (WIDTH, FFN), "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (vocab, WIDTH),
        **{f"model.layers.0.{name}.weight": shape for name, shape in layer.items()},
    }  # fmt: skip
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FFN,
        "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "vocab_size": vocab, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "bos_token_id": 10, "eos_token_id": 11,
        "pad_token_id": None, "attention_dropout": 0.0, "torch_dtype": "float32", "transformers_version": "5.0.0",
    }  # fmt: skip
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {
            "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 10**30, "chat_template": "{{ messages }}",
            "added_tokens_decoder": {"10": {"content": "<s>", "special": True}},
        },
        "generation_config.json": {"eos_token_id": [11, 9], "do_sample": True, "temperature": 0.6, "top_k": 20},
    }  # fmt: skip
    return Files(files, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})


def adapter(rank: int = 2, seed: int = 1) -> Files:
    """A PEFT adapter of that llama's queries."""
    rng, stem = np.random.default_rng(seed), "base_model.model.model.layers.0.self_attn.q_proj"
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"],
        "lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "bias": "none", "fan_in_fan_out": False,
        "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "layers_to_transform": None, "trainable_token_indices": None, "inference_mode": True,
    }  # fmt: skip
    tensors = {
        f"{stem}.lora_A.weight": rng.standard_normal((rank, WIDTH)).astype(np.float32),
        f"{stem}.lora_B.weight": rng.standard_normal((WIDTH, rank)).astype(np.float32),
    }
    return Files({"adapter_config.json": config}, tensors, "adapter_model.safetensors")
