"""Block formats: weights must mean here what they mean to everyone else, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as reference_encode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fabric.core import _native
from fabric.core.blocks import decode, encode
from fabric.weights.formats import BY_NAME, FORMATS, encodable, tensor_bytes
from fabric.weights.gguf import GGUF, decode_tensor
from tests.support import llama_cpp
from tests.support.decoded import decoded
from tests.support.paths import gemma3

ffi, lib = _native.ffi, _native.lib

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
BLOCKS = [name for name in TYPES if BY_NAME[name].block > 1]
FITTED = ["Q4_K", "Q5_K", "Q6_K"]  # encoders of our own; what must not differ is what is lost
WEIGHED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1"]  # fitted like those where importance is given
DECODED = [row.name for row in FORMATS.values() if row.decodes and row.name not in TYPES]
NO_WEIGHTS = ["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"]  # which no engine multiplies with
SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}

quick = settings(deadline=None, max_examples=60)


def reference_decode(name: str, data: bytes) -> np.ndarray:
    with np.errstate(all="ignore"):
        return decoded(np.frombuffer(data, np.uint8).reshape(1, -1), gguf.GGMLQuantizationType[name]).ravel()


def reference_bytes(name: str, values: np.ndarray) -> bytes:
    with np.errstate(all="ignore"):
        return reference_encode(values, gguf.GGMLQuantizationType[name]).tobytes()


def same_floats(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def normal_rows(seed: int, rows: int = 64, cols: int = 256) -> np.ndarray:
    """Rows of very different size, as weights and their outliers are."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, cols)) * np.exp(rng.uniform(-9, 4, (rows, 1)))).astype(np.float32)


@pytest.mark.parametrize("name", TYPES + DECODED)
@quick
@given(data=st.data())
def test_any_bytes_decode_as_everywhere_else(name: str, data: st.DataObject) -> None:
    row = BY_NAME[name]
    blocks = data.draw(st.integers(1, 9))
    raw = data.draw(st.binary(min_size=blocks * row.block_bytes, max_size=blocks * row.block_bytes))
    assert same_floats(decode(row.type, raw, blocks * row.block), reference_decode(name, raw))


@pytest.mark.parametrize("kind", gguf.GGMLQuantizationType)
def test_every_type_that_gguf_names_is_decoded_or_no_weight(kind: gguf.GGMLQuantizationType) -> None:
    assert FORMATS[int(kind)].decodes != (kind.name in NO_WEIGHTS)


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in ("F32", *NO_WEIGHTS)])
def test_stock_llama_cpp_decodes_the_same(name: str) -> None:
    row = BY_NAME[name]
    raw = np.random.default_rng(6).integers(0, 256, 99 * row.block_bytes, np.uint8).tobytes()
    assert same_floats(decode(row.type, raw, 99 * row.block), llama_cpp.decode(row.type, raw, 99 * row.block))


@pytest.mark.parametrize("name", [name for name in DECODED if name.startswith(("IQ1", "IQ2", "IQ3"))])
def test_every_code_of_a_grid_decodes_as_everywhere_else(name: str) -> None:
    row = BY_NAME[name]
    raw = np.random.default_rng(8).integers(0, 256, 1500 * row.block_bytes, np.uint8).tobytes()  # 48,000 codes or more
    assert same_floats(decode(row.type, raw, 1500 * row.block), reference_decode(name, raw))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_16_bit_number_decodes_exactly(name: str) -> None:
    raw = np.arange(1 << 16, dtype="<u2").tobytes()
    assert same_floats(decode(BY_NAME[name].type, raw, 1 << 16), reference_decode(name, raw))


@pytest.mark.parametrize("name", BLOCKS + DECODED)
@pytest.mark.parametrize("scale", [0x7E00, 0x7C00, 0xFC00, 0x0001, 0x8000, 0x7BFF])
def test_scales_that_are_nan_infinite_or_tiny_decode_as_everywhere_else(name: str, scale: int) -> None:
    row = BY_NAME[name]
    raw = bytearray(np.random.default_rng(scale).integers(0, 256, row.block_bytes, np.uint8).tobytes())
    for at in SCALES_AT.get(name, (0,)):
        raw[at : at + 2] = scale.to_bytes(2, "little")
    if name == "IQ1_M":  # a nibble on top of each four scales
        raw[49:56:2] = [16 * (scale >> shift & 15) + 5 for shift in (0, 4, 8, 12)]
    assert same_floats(decode(row.type, raw, row.block), reference_decode(name, bytes(raw)))


@pytest.mark.parametrize("name", TYPES + DECODED)
def test_tensors_at_odd_addresses_are_read(name: str) -> None:
    row = BY_NAME[name]
    raw = np.random.default_rng(3).integers(0, 256, 1 + 4 * row.block_bytes, np.uint8).tobytes()
    found = decode(row.type, memoryview(raw)[1:], 4 * row.block)
    assert same_floats(found, reference_decode(name, raw[1:]))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_encoding_gives_the_bytes_that_the_gguf_package_gives(name: str, seed: int) -> None:
    values = normal_rows(seed)
    assert bytes(encode(BY_NAME[name].type, values)) == reference_bytes(name, values)


@pytest.mark.parametrize("name", TYPES)
@quick
@given(
    values=hnp.arrays(
        np.float32, (2, 32), elements=st.floats(-60000, 60000, width=32, allow_subnormal=False).map(lambda x: x + 0.0)
    )
)
def test_encoding_loses_no_more_than_the_gguf_package(name: str, values: np.ndarray) -> None:
    type = BY_NAME[name].type
    ours = decode(type, encode(type, values), values.size)
    theirs = reference_decode(name, reference_bytes(name, values))
    lost = np.abs(ours.astype(np.float64) - values.ravel()).sum()
    assert lost <= np.abs(theirs.astype(np.float64) - values.ravel()).sum()


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize("name", TYPES[1:])
def test_encoding_gives_the_bytes_that_stock_llama_cpp_gives(name: str) -> None:
    values = normal_rows(11)
    type = BY_NAME[name].type
    assert bytes(encode(type, values)) == llama_cpp.encode(type, values, tensor_bytes(type, values.shape), None)


@pytest.mark.parametrize(("name", "overflow"), [("BF16", 3.4e38), ("F16", 65520.0)])
def test_16_bit_rounding_is_to_nearest_even_and_keeps_nan(name: str, overflow: float) -> None:
    type = BY_NAME[name].type
    every = decode(type, np.arange(1 << 16, dtype="<u2").tobytes(), 1 << 16)
    finite = np.unique(every[np.isfinite(every)])
    halfway = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    values = np.concatenate([finite, halfway, np.nextafter(halfway, np.float32(np.inf))])
    assert bytes(encode(type, values[None])) == reference_bytes(name, values)
    special = np.array([[np.nan, -np.nan, np.inf, -np.inf, overflow, -0.0]], np.float32)
    found = decode(type, encode(type, special), 6)
    assert np.isnan(found[:2]).all()
    assert found[2:5].tolist() == [np.inf, -np.inf, np.inf]
    assert found[5] == 0
    assert np.signbit(found[5])


@pytest.mark.parametrize("name", BLOCKS + FITTED)
def test_values_that_are_no_numbers_do_not_crash_the_encoder(name: str) -> None:
    values = normal_rows(5, 4)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    values[1] = 0.0
    values[2] = 1e-42
    values[3] = np.float32(3e38)
    for importance in (None, np.ones(values.shape[1], np.float32)):
        found = decode(BY_NAME[name].type, encode(BY_NAME[name].type, values, importance), values.size)
        assert (found.reshape(4, -1)[1] == 0).all()


def matrices() -> dict[str, np.ndarray]:
    """Weights of several kinds: normal, with outliers, with columns of their own size, all of one sign, hardly any."""
    rng = np.random.default_rng(4)
    sparse = rng.standard_normal((48, 512)) * (rng.random((48, 512)) < 0.02)
    made = {
        "normal": rng.standard_normal((48, 512)) * 0.02,
        "wide": rng.standard_normal((24, 1024)) * 0.02,
        "outliers": rng.standard_t(3, (48, 512)) * 0.01,
        "columns": rng.standard_normal((48, 512)) * np.exp(rng.normal(0, 1, 512)),
        "positive": rng.random((48, 512)) + 1,
        "negative": rng.random((48, 512)) - 2,
        "sparse": sparse,
        "tiny": rng.standard_normal((48, 512)) * 1e-4,
    }
    return {name: values.astype(np.float32) for name, values in made.items()}


def lost(name: str, values: np.ndarray, data: bytes | memoryview, weights: np.ndarray | float = 1.0) -> float:
    off = decode(BY_NAME[name].type, data, values.size).reshape(values.shape) - values.astype(np.float64)
    return float(np.sqrt((weights * off**2).mean()))


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize(
    ("name", "weighed"), [*((n, w) for n in FITTED for w in (False, True)), *((n, True) for n in WEIGHED)]
)
def test_fitted_formats_lose_no_more_than_in_stock_llama_cpp(name: str, weighed: bool) -> None:
    type = BY_NAME[name].type
    for kind, values in matrices().items():
        importance = np.random.default_rng(5).chisquare(1, values.shape[1]).astype(np.float32) if weighed else None
        theirs = llama_cpp.encode(type, values, tensor_bytes(type, values.shape), importance)
        weights = 1.0 if importance is None else importance
        ours = lost(name, values, encode(type, values, importance), weights)
        assert ours <= 1.02 * lost(name, values, theirs, weights), kind


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize("name", FITTED)
def test_matrices_of_gemma_lose_no_more_than_in_stock_llama_cpp(name: str) -> None:
    type = BY_NAME[name].type
    with GGUF.open(gemma3()) as model:
        for tensor in ("blk.0.attn_output.weight", "blk.7.ffn_down.weight", "blk.17.ffn_down.weight"):
            values = decode_tensor(model, tensor)
            theirs = llama_cpp.encode(type, values, tensor_bytes(type, values.shape), None)
            assert lost(name, values, encode(type, values)) <= 1.02 * lost(name, values, theirs), tensor


@pytest.mark.parametrize("name", FITTED + WEIGHED)
def test_columns_of_importance_are_kept_best(name: str) -> None:
    values = matrices()["normal"]
    importance = np.where(np.arange(512) % 8 == 0, 1.0, 0.0).astype(np.float32)
    plain, weighed = (encode(BY_NAME[name].type, values, given) for given in (None, importance))
    assert lost(name, values, weighed, importance) < 0.7 * lost(name, values, plain, importance)
    assert lost(name, values, weighed) < 3 * lost(name, values, plain)
    none = encode(BY_NAME[name].type, values, np.zeros(512, np.float32))
    assert lost(name, values, none) <= lost(name, values, plain)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0"])
def test_formats_that_have_no_choice_pass_over_importance(name: str) -> None:
    values = matrices()["normal"]
    importance = np.arange(512, dtype=np.float32)
    assert bytes(encode(BY_NAME[name].type, values, importance)) == bytes(encode(BY_NAME[name].type, values))


def test_the_core_and_the_reader_agree_on_every_size() -> None:
    assert [row.name for row in encodable()] == sorted(TYPES + FITTED, key=lambda name: BY_NAME[name].type)
    for type, (block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        assert (FORMATS[int(type)].block, FORMATS[int(type)].block_bytes) == (block, block_bytes)
        assert FORMATS[int(type)].name == type.name
        row = lib.fb_format_get(int(type))
        if row != ffi.NULL:
            assert (ffi.string(row.name).decode(), row.type) == (type.name, int(type))
            assert (row.block, row.block_bytes) == (block, block_bytes)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lib.fb_decode(8, ffi.new("char[34]"), 34, ffi.new("float[32]"), 31), "whole Q8_0 blocks"),
        (lambda: lib.fb_decode(8, ffi.new("char[33]"), 33, ffi.new("float[32]"), 32), "are not 33 bytes"),
        (lambda: lib.fb_decode(8, ffi.NULL, 34, ffi.NULL, 32), "are not 34 bytes"),
        (lambda: lib.fb_decode(0, ffi.NULL, 0, ffi.NULL, 1 << 62), "whole F32 blocks"),
        (lambda: lib.fb_encode(8, ffi.new("float[32]"), ffi.new("char[33]"), 33, 1, 32, ffi.NULL), "take 33 bytes"),
        (lambda: lib.fb_decode(99, ffi.NULL, 0, ffi.NULL, 0), "cannot be decoded"),
        (lambda: lib.fb_encode(8, ffi.NULL, ffi.NULL, 0, 1, 33, ffi.NULL), "whole Q8_0 blocks"),
        (lambda: lib.fb_encode(8, ffi.NULL, ffi.NULL, 0, 1 << 40, 1 << 40, ffi.NULL), "1099511627776"),
        (lambda: lib.fb_encode(26, ffi.NULL, ffi.NULL, 0, 1, 1, ffi.NULL), "cannot be encoded"),
    ],
)
def test_a_mistaken_call_ends_in_a_sentence(call: object, sentence: str) -> None:
    assert call() == lib.FB_E_ARGUMENT  # type: ignore[operator]
    assert sentence in ffi.string(lib.fb_error()).decode()


def test_names_and_numbers_of_types_and_files_are_those_of_gguf() -> None:
    assert {row.type: row.name for row in FORMATS.values()} == {int(k): k.name for k in gguf.GGMLQuantizationType}
    for row in FORMATS.values():
        if row.file_type is not None:
            name = gguf.LlamaFileType(row.file_type).name
            assert name.removeprefix("ALL_").removeprefix("MOSTLY_").removesuffix("_MOE") == row.name
