"""Small GGUF files of every architecture with random weights and a real byte-level tokenizer, for tests; and, by

    python -m tests.support.random_models qwen3-0.6b --type Q8_0 -o model.gguf

files of a real shape for benchmarks. Written by the gguf package, so that our own writer is not its own judge.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import NVFP4, quantize

from tests.support.decoded import decoded
from tests.support.shapes import PRESETS, LongRope, Shape

Array = npt.NDArray[np.float32]

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Formats that the gguf package reads but does not write: where the scale lies, and that of the minima with what it is
# in units of the scale for values of mean zero.
_SCALES = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), (0, None, 0.0)),
    "Q1_0": (0, None, 0.0),
    "IQ1_M": (48, None, 0.0),
    "NVFP4": (0, None, 0.0),
}
_CHUNK = 1 << 22  # elements made at a time
_CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other dog thanks the fox for the lesson in there "
    "is what it was that this and those are in the house on the hill with the old man and his cat"
)


@lru_cache(maxsize=1)
def _byte_characters() -> list[str]:
    """The printable stand-in of each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(b if b in plain else next(shifted)) for b in range(256)]


@lru_cache(maxsize=4)
def tokenizer(vocab: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges: three specials, 256 bytes, words of a small corpus, unused ones up to `vocab`."""
    tokens = [*SPECIALS, *_byte_characters()]
    if vocab < len(tokens):
        raise ValueError(f"a vocabulary of {vocab} has no room for {len(tokens)} bytes and specials")
    words = [[_byte_characters()[b] for b in (" " + word).encode()] for word in _CORPUS.split()]
    merges: list[str] = []
    while len(tokens) < vocab:
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        (left, right), _ = max(counts.items(), key=lambda item: (item[1], item[0]))
        merges.append(f"{left} {right}")
        tokens.append(left + right)
        for word in words:
            for i in range(len(word) - 1, 0, -1):
                if (word[i - 1], word[i]) == (left, right):
                    word[i - 1 : i + 1] = [left + right]
    control, normal, unused = (int(gguf.TokenType[n]) for n in ("CONTROL", "NORMAL", "UNUSED"))
    types = [control] * len(SPECIALS) + [normal] * (len(tokens) - len(SPECIALS))
    spare = vocab - len(tokens)
    return [*tokens, *(f"<|unused_{i}|>" for i in range(spare))], types + [unused] * spare, merges


def _tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    tokens, token_types, merges = tokenizer(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def _given(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, (list, tuple)):
            writer.add_array(key, list(value))
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)


def _metadata(
    writer: gguf.GGUFWriter, shape: Shape, types: Mapping[str, str], vocabulary: Mapping[str, Any] | None
) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    ffn = [shape.ffn_of(i) for i in range(shape.layers)]
    writer.add_feed_forward_length(ffn if len({*ffn}) > 1 else shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(
        shape.kv_heads
        if "d" in shape.mixers
        else [shape.kv_heads * (one != "c") for one in shape.mixers] or shape.kv_heads
    )
    if shape.architecture == "gemma4":
        writer.add_sliding_window_pattern([one == "w" for one in shape.mixers])
        writer.add_key_length_swa(shape.local_head_dim)
        writer.add_value_length_swa(shape.local_head_dim)
        writer.add_rope_dimension_count_swa(shape.local_head_dim)
        writer.add_rope_freq_base_swa(shape.local_base)
        writer.add_shared_kv_layers(shape.shared)
        writer.add_embedding_length_per_layer_input(shape.per_layer)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.rotated or shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.period != 6:
        writer.add_sliding_window_pattern(shape.period)
    if shape.local_base != 10000.0:
        writer.add_rope_freq_base_swa(shape.local_base)
    if shape.linear_scaling != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.linear_scaling)
    long = shape.rope_scaling.metadata() if isinstance(shape.rope_scaling, LongRope) else {}
    _given(writer, {f"{shape.architecture}.{key}": value for key, value in {**long, **dict(shape.own)}.items()})
    writer.add_vocab_size(shape.vocab)
    kind = types.get("attn_q", types["default"])
    names = ("ALL_F32",) if kind == "F32" else (f"MOSTLY_{kind}{mix}" for mix in ("", "_M", "_MOE"))
    writer.add_file_type(next(int(gguf.LlamaFileType[n]) for n in names if n in gguf.LlamaFileType.__members__))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if vocabulary is None:
        writer.add_name("random")
        _tokenizer(writer, shape.vocab)
    else:
        _given(writer, vocabulary)


def blocks(
    kind: gguf.GGMLQuantizationType, rows: int, cols: int, std: float, rng: np.random.Generator
) -> npt.NDArray[np.generic]:
    """Encoded rows of random values: normal ones, or random blocks of formats that the gguf package does not write."""
    if kind.name not in _SCALES:
        return quantize(rng.standard_normal((rows, cols), np.float32) * np.float32(std), kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    at, at_min, ratio = _SCALES[kind.name]
    raw = rng.integers(0, 256, (rows, cols // block, block_bytes), np.uint8)

    def scaled(d: float) -> npt.NDArray[np.uint8]:
        half = np.float16(d).tobytes()
        if kind.name == "IQ1_M":  # a nibble of it on top of each four scales
            word = int.from_bytes(half, "little")
            raw[:, :, at + 1 : at + 8 : 2] = [16 * (word >> shift & 15) for shift in (0, 4, 8, 12)]
        elif kind.name == "NVFP4":  # the nearest of its 8-bit scales
            known = NVFP4.ue4m3_to_fp32(np.arange(127, dtype=np.uint8)) * 2
            raw[:, :, at : at + 4] = abs(known - d).argmin()
        else:
            raw[:, :, at : at + 2] = np.frombuffer(half, np.uint8)
        if at_min is not None:
            raw[:, :, at_min : at_min + 2] = np.frombuffer(np.float16(d * ratio).tobytes(), np.uint8)
        return raw.reshape(rows, -1)

    return scaled(std / float(decoded(scaled(1.0), kind).std()))


Maker = Callable[[], Iterator[npt.NDArray[np.generic]]]


def write_model(
    path: str | Path,
    shape: Shape = PRESETS["tiny"],
    types: str | Mapping[str, str] = "F32",
    seed: int = 0,
    repeat: bool = False,
    vocabulary: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the file and returns its path. `types`: a GGUF type for all matrices, or by module ("attn_q",
    "token_embd", ...; "default" for the rest) or matrix ("blk.0.attn_q").
    `repeat`: rows repeat in large matrices, which is quick to write.
    `vocabulary`: another file's metadata of its tokenizer, of `shape.vocab` tokens.
    """
    chosen = {"default": types} if isinstance(types, str) else {"default": "F32", **types}
    chosen = {"ffn_gate_inp": "F32", **chosen}  # as files have routers
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    _metadata(writer, shape, chosen, vocabulary)
    makers: list[Maker] = []
    unscaled = shape.architecture == "gemma4"

    def vector(name: str, values: Array) -> None:
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        makers.append(lambda: iter([values]))

    def matrix(name: str, module: str, shape: tuple[int, ...], std: float) -> None:
        rows, cols = math.prod(shape[:-1]), shape[-1]
        kind = gguf.GGMLQuantizationType[
            chosen.get(name.removesuffix(".weight"), chosen.get(module, chosen["default"]))
        ]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if cols % block:
            raise ValueError(f"{name}: rows of {cols} do not divide into {kind.name} blocks of {block}")
        writer.add_tensor_info(name, shape, np.dtype(np.float32), rows * cols // block * block_bytes, kind)

        def make() -> Iterator[npt.NDArray[np.generic]]:
            step, chunk = max(1, _CHUNK // cols), None
            for first in range(0, rows, step):
                count = min(step, rows - first)
                if chunk is None or not repeat:
                    chunk = blocks(kind, count, cols, std, rng)
                yield chunk[:count]

        makers.append(make)

    def drawn(name: str, shape: tuple[int, ...]) -> None:
        noise = 0.1 * rng.standard_normal(shape)
        values = 6 * noise if len(shape) > 1 else noise if name.endswith("bias") else 1 + noise
        if name.endswith("ssm_a"):
            values = -np.exp(10 * noise)
        if unscaled and "attn_q_norm" in name:  # so that scores are as small as in others
            values *= len(noise) ** -0.5
        vector(name, values.astype(np.float32))

    matrix("token_embd.weight", "token_embd", (shape.vocab, shape.hidden), 2 / math.sqrt(shape.hidden))
    for i in range(shape.layers):
        for name, size in shape.vectors(i).items():
            drawn(f"blk.{i}.{name}", size)
        for module, sizes in shape.linear(i).items():
            wide = 3.0 if module == "ffn_gate_inp" else 1.0  # so that experts differ in their logits
            matrix(f"blk.{i}.{module}.weight", module, sizes, wide / math.sqrt(sizes[-1]))
    drawn(f"{'token_embd_norm' if shape.architecture == 'lfm2' else 'output_norm'}.weight", (shape.hidden,))
    if not shape.tied:
        matrix("output.weight", "output", (shape.vocab, shape.hidden), 2 / math.sqrt(shape.hidden))
    if isinstance(shape.rope_scaling, LongRope):
        for name, values in shape.rope_scaling.tensors().items():
            vector(name, values)
    elif shape.architecture == "gemma4":  # of the layers that see all, which turn a quarter of a head
        whole = shape.layers * shape.per_layer
        rows = (shape.vocab, whole)
        matrix("per_layer_token_embd.weight", "per_layer_token_embd", rows, 1 / math.sqrt(shape.per_layer))
        rows = (whole, shape.hidden)
        matrix("per_layer_model_proj.weight", "per_layer_model_proj", rows, 1 / math.sqrt(shape.hidden))
        drawn("per_layer_proj_norm.weight", (shape.per_layer,))
        turned = np.arange(shape.head_dim // 2) < shape.head_dim // 8
        vector("rope_freqs.weight", np.where(turned, 1, 1e30).astype(np.float32))
    elif shape.rope_scaling is not None:
        vector("rope_freqs.weight", shape.rope_scaling.factors(shape.rope_base, shape.head_dim))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    for make in makers:
        writer.write_padding(out, out.tell())
        for part in make():
            out.write(np.ascontiguousarray(part).data)
    writer.write_padding(out, out.tell())
    writer.close()
    return Path(path)


def random_pairs(
    shape: Shape, rank: int = 4, seed: int = 1, b_std: float = 0.0, modules: Sequence[str] | None = None
) -> dict[str, tuple[Array, Array]]:
    """LoRA pairs A (rank, in), B (out, rank) by tensor name, one an expert: A as PEFT draws it, B zero or normal."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(shape.layers):
        for module, (*experts, rows, cols) in shape.linear(i).items():
            if modules is None or module in modules:
                a = rng.uniform(-1, 1, (*experts, rank, cols)) / math.sqrt(cols)
                b = rng.standard_normal((*experts, rows, rank)) * b_std
                found[f"blk.{i}.{module}.weight"] = (a.astype(np.float32), b.astype(np.float32))
    return found


def main() -> None:
    """The command of the module's first lines."""
    parser = argparse.ArgumentParser(description="Write a GGUF of a real shape with random weights.")
    parser.add_argument("shape", choices=sorted(PRESETS))
    parser.add_argument("--type", default="Q8_0", help="of all matrices: any that gguf knows, Q4_K ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    write_model(args.output, PRESETS[args.shape], args.type, args.seed, repeat=True)


if __name__ == "__main__":
    main()
