"""GGUF: what is in a file must come out, what is not must be said, and no file may cost more than its size."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.errors import DataError, FabricError, MissingInputError
from fabric.weights.formats import BY_NAME
from fabric.weights.gguf import GGUF, TensorSpec, ValueType, decode_tensor, write_gguf
from tests.support.paths import smollm2

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.u32": 7,
    "a.i32": -7,
    "a.u64": 1 << 40,
    "a.i64": -(1 << 40),
    "a.f32": 0.5,
    "a.bool": True,
    "a.text": "grüße \0 and more",
    "a.strings": ["a", "", "ö"],
    "a.numbers": [1, -2, 3],
    "a.floats": [0.25, -1.5],
    "a.bools": [True, False],
    "a.nothing": [],
}
TENSORS = [
    ("one.weight", "F32", (3,)),
    ("two.weight", "Q8_0", (5, 64)),
    ("three.weight", "BF16", (2, 3, 7)),
    ("four.weight", "Q8_K", (1, 256)),
]


def sample(metadata: dict[str, Any] | None = None, alignment: int = 32, n_tensors: int = 4) -> bytes:
    """A small file with a value of every kind and tensors of several types."""
    specs = [TensorSpec(name, BY_NAME[type].type, shape) for name, type, shape in TENSORS[:n_tensors]]
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    values = {**(METADATA if metadata is None else metadata)}
    if alignment != 32:
        values["general.alignment"] = alignment
    write_gguf(out, values, specs, (rng.integers(0, 256, spec.nbytes, np.uint8).data for spec in specs))
    return out.getvalue()


@pytest.fixture
def open_bytes(tmp_path: Path) -> Callable[[bytes], GGUF]:
    def opener(data: bytes) -> GGUF:
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        return GGUF.open(path)

    return opener


def test_values_and_tensors_come_back_as_they_were_written(open_bytes: Callable[[bytes], GGUF]) -> None:
    with open_bytes(sample()) as file:
        assert dict(file.metadata) == METADATA
        assert [(info.name, info.type_name, info.shape) for info in file.tensors.values()] == TENSORS
        rng = np.random.default_rng(0)
        for info in file.tensors.values():
            assert bytes(file.data(info.name)) == rng.integers(0, 256, info.nbytes, np.uint8).tobytes()
            assert info.offset % 32 == 0
        assert file.data("one.weight").readonly


@pytest.mark.parametrize("alignment", [1, 8, 32, 256])
def test_the_gguf_package_reads_what_is_written_here(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(sample(alignment=alignment))
    reader = reference.GGUFReader(path)
    for key, value in METADATA.items():
        if value != []:
            assert reader.fields[key].contents() == value
    for tensor, (name, type, shape) in zip(reader.tensors, TENSORS, strict=True):
        assert (tensor.name, tensor.tensor_type.name, tuple(tensor.shape.tolist())[::-1]) == (name, type, shape)
    with GGUF.open(path) as file:
        for tensor in reader.tensors:
            assert tensor.data.tobytes() == bytes(file.data(tensor.name))


def test_a_model_of_others_is_rewritten_bit_for_bit() -> None:
    with GGUF.open(smollm2()) as file:
        out = io.BytesIO()
        specs = [TensorSpec(info.name, info.type, info.shape) for info in file.tensors.values()]
        assert write_gguf(out, file.raw_metadata, specs, map(file.data, file.tensors)) == file.file_bytes
        assert out.getvalue() == Path(smollm2()).read_bytes()


def test_metadata_types_survive_a_rewrite_from_plain_values(open_bytes: Callable[[bytes], GGUF]) -> None:
    types = {"x.u8": ValueType(0), "x.i16s": ValueType(9, 3), "x.f64": ValueType(12), "x.f32s": ValueType(9, 6)}
    values = {"x.u8": 200, "x.i16s": [-3, 3], "x.f64": 0.1, "x.f32s": [1, 2]}
    out = io.BytesIO()
    write_gguf(out, values, [], [], types)
    with open_bytes(out.getvalue()) as file:
        assert dict(file.metadata) == values
        assert dict(file.metadata_types) == types
        again = io.BytesIO()
        write_gguf(again, file.metadata, [], [], file.metadata_types)
        assert again.getvalue() == out.getvalue()


def test_text_that_is_no_utf8_is_not_lost(open_bytes: Callable[[bytes], GGUF]) -> None:
    data = sample({"bad": "XYZ", "bads": ["XYZ", "b"]}).replace(b"XYZ", b"\xff\xfeZ")
    with open_bytes(data) as file:
        assert file.metadata["bad"].encode("utf-8", "surrogateescape") == b"\xff\xfeZ"
        assert file.metadata["bads"][0] == file.metadata["bad"]
        out = io.BytesIO()
        specs = [TensorSpec(info.name, info.type, info.shape) for info in file.tensors.values()]
        write_gguf(out, file.metadata, specs, map(file.data, file.tensors), file.metadata_types)
        assert out.getvalue() == data


def test_a_pipe_is_read_and_written(tmp_path: Path) -> None:
    code = (
        "import sys; from fabric.weights.gguf import *\n"
        "g = GGUF.open('-'); specs = [TensorSpec(i.name, i.type, i.shape) for i in g.tensors.values()]\n"
        "write_gguf(sys.stdout.buffer, g.raw_metadata, specs, map(g.data, g.tensors))"
    )
    path = tmp_path / "x.gguf"
    path.write_bytes(sample())
    command = f'cat "{path}" | "{sys.executable}" -c "$CODE" | cat'
    env = {**os.environ, "CODE": code}
    piped = subprocess.run(command, shell=True, env=env, capture_output=True, check=True)
    assert piped.stdout == path.read_bytes()


def test_views_of_tensors_outlive_the_file(open_bytes: Callable[[bytes], GGUF]) -> None:
    with open_bytes(sample()) as file:
        data = np.frombuffer(file.data("two.weight"), np.uint8)
        decoded = decode_tensor(file, "two.weight")
    assert decoded.shape == (5, 64)
    assert data.sum() > 0


def test_version_2_is_read(open_bytes: Callable[[bytes], GGUF]) -> None:
    data = bytearray(sample())
    data[4] = 2
    assert open_bytes(bytes(data)).version == 2


def test_typed_values_are_checked(open_bytes: Callable[[bytes], GGUF]) -> None:
    with open_bytes(sample()) as file:
        assert file.get("a.u32", int) == 7
        assert file.get("a.u32", float) == 7.0
        assert file.get("a.strings", list) == ["a", "", "ö"]
        assert file.get("not.there", str, "x") == "x"
        for key, kind in (("a.text", int), ("a.bool", int), ("a.f32", int), ("a.u32", str), ("a.u32", list)):
            with pytest.raises(DataError, match=key):
                file.get(key, kind)
        with pytest.raises(DataError, match=r"not\.there is missing"):
            file.get("not.there", str)
        with pytest.raises(DataError, match="tensor nope is missing"):
            file.data("nope")
        with pytest.raises(DataError, match=r"four\.weight is Q8_K, a type that holds no weights"):
            decode_tensor(file, "four.weight")


def test_a_file_that_is_not_there_is_missing_input(tmp_path: Path) -> None:
    for path, error in ((tmp_path / "no.gguf", MissingInputError), (tmp_path, DataError)):
        with pytest.raises(error, match=str(path)):
            GGUF.open(path)


def test_a_big_vocabulary_opens_quickly(tmp_path: Path) -> None:
    tokens = [f"token{i}" for i in range(262_144)]
    path = tmp_path / "x.gguf"
    with path.open("wb") as out:
        write_gguf(out, {"tokenizer.ggml.tokens": tokens}, [], [])
    start = time.process_time()
    file = GGUF.open(path)
    assert file.metadata["tokenizer.ggml.tokens"] == tokens
    assert time.process_time() - start < 60  # not a speed: an implementation that is quadratic takes minutes


# ---- hostile files ----


def header(n_tensors: int, n_keys: int, rest: bytes = b"", magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, type: int, rest: bytes) -> bytes:
    return text(name) + struct.pack("<I", type) + rest


def tensor(name: str, shape: list[int], type: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type, offset)


def tensors(*claims: bytes, keys: bytes = b"", n_keys: int = 0, room: int = 1 << 12) -> bytes:
    return header(len(claims), n_keys, keys + b"".join(claims)) + bytes(room)


HUGE = (1 << 64) - 1
HOSTILE = {
    "empty": (b"", "empty"),
    "three bytes": (b"GGU", "not a GGUF"),
    "another format": (b"PK\3\4" * 40, "not a GGUF"),
    "magic alone": (b"GGUF", "cut short"),
    "version 1": (header(0, 0, version=1), "version 1"),
    "version 99": (header(0, 0, version=99), "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more keys than bytes": (header(0, HUGE), "metadata keys"),
    "more tensors than bytes": (header(HUGE, 0), "tensors"),
    "keys that are not there": (header(0, 20, bytes(8)), "unknown|cut short|twice"),
    "43 bytes, an array of 2^64": (header(0, 1, key("k", 9, struct.pack("<IQ", 8, HUGE))), "cut short"),
    "an array of 2^61 numbers": (header(0, 1, key("k", 9, struct.pack("<IQ", 10, 1 << 61))), "cut short"),
    "an array of unknown type": (header(0, 1, key("k", 9, struct.pack("<IQ", 77, 0))), "unknown type 77"),
    "nested arrays": (header(0, 1, key("k", 9, struct.pack("<IQ", 9, 1) * 400)), "array of arrays"),
    "a string of 2^64": (header(0, 1, key("k", 8, struct.pack("<Q", HUGE))), "cut short"),
    "an array with a lying string": (
        header(0, 1, key("k", 9, struct.pack("<IQ", 8, 2) + text("a") + struct.pack("<Q", HUGE)) + bytes(64)),
        "cut short",
    ),
    "a key of 2^64": (header(0, 1, struct.pack("<Q", HUGE) + bytes(64)), "claims"),
    "a key that is no text": (header(0, 1, struct.pack("<Q", 2) + b"\xff\xff" + bytes(64)), "UTF-8"),
    "an unknown value type": (header(0, 1, key("k", 13, bytes(8))), "unknown type 13"),
    "a key twice": (header(0, 2, key("k", 0, b"1") * 2), "'k' comes twice"),
    "a tensor twice": (tensors(tensor("t", [8], 0, 0), tensor("t", [8], 0, 32)), "'t' comes twice"),
    "no dimensions": (tensors(tensor("t", [], 0, 0)), "0 dimensions"),
    "five dimensions": (tensors(tensor("t", [1] * 5, 0, 0)), "5 dimensions"),
    "2^32-1 dimensions": (tensors(text("t") + struct.pack("<I", 0xFFFFFFFF)), "4294967295 dimensions"),
    "a dimension of 0": (tensors(tensor("t", [8, 0], 0, 0)), "impossible shape"),
    "dimensions that overflow": (tensors(tensor("t", [1 << 63, 1 << 63, 4, 1], 0, 0)), "impossible shape"),
    "a product that overflows": (tensors(tensor("t", [1 << 30, 1 << 30, 1 << 30, 16], 0, 0)), "cut short"),
    "an unknown tensor type": (tensors(tensor("t", [8], 36, 0)), "unknown type 36"),
    "half a block": (tensors(tensor("t", [33], 8, 0)), "whole Q8_0 blocks"),
    "a misaligned offset": (tensors(tensor("t", [8], 0, 4)), "not a multiple of 32"),
    "an offset past the end": (tensors(tensor("t", [8], 0, 1 << 40)), "cut short: tensor 't' ends at byte"),
    "an offset of 2^64": (tensors(tensor("t", [8], 0, HUGE - 31)), "cut short"),
    "tensors that overlap": (tensors(tensor("t", [16], 0, 0), tensor("u", [8], 0, 32)), "'t' and 'u' overlap"),
    "alignment 0": (tensors(keys=key("general.alignment", 4, bytes(4)), n_keys=1), "power of two"),
    "alignment 48": (tensors(keys=key("general.alignment", 4, struct.pack("<I", 48)), n_keys=1), "power of two"),
    "alignment as text": (tensors(keys=key("general.alignment", 8, text("32")), n_keys=1), "power of two"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_lying_file_ends_in_one_sentence(name: str, open_bytes: Callable[[bytes], GGUF], tmp_path: Path) -> None:
    data, sentence = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(DataError, match=sentence) as caught:
        open_bytes(data)
    assert str(tmp_path / "x.gguf") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 1.0


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = sample()
    last = end_of_tensors(tmp_path, data)
    path = tmp_path / "cut.gguf"
    for length in range(last):
        path.write_bytes(data[:length])
        with pytest.raises(DataError):
            GGUF.open(path)


def end_of_tensors(tmp_path: Path, data: bytes) -> int:
    path = tmp_path / "whole.gguf"
    path.write_bytes(data)
    with GGUF.open(path) as file:
        return max(info.offset + info.nbytes for info in file.tensors.values())


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_bytes_changed_end_in_a_file_or_a_sentence(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(sample())
    for at, byte in edits:
        data[at % len(data)] = byte
    read_everything(tmp_path, bytes(data))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), n_keys=st.integers(0, 3), n_tensors=st.integers(0, 3))
def test_any_bytes_at_all_end_in_a_file_or_a_sentence(tmp_path: Path, data: bytes, n_keys: int, n_tensors: int) -> None:
    read_everything(tmp_path, header(n_tensors, n_keys, data))


def read_everything(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(data)
    try:
        with GGUF.open(path) as file:
            dict(file.metadata)
            for name in file.tensors:
                assert len(file.data(name)) == file.tensors[name].nbytes
                if file.tensors[name].type_name != "Q8_K":
                    decode_tensor(file, name)
    except DataError as error:
        assert "\n" not in str(error)


def test_a_monster_of_a_million_strings_costs_no_more_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header(0, 1, key("k", 9, struct.pack("<IQ", 8, 2_000_000)) + bytes(16_000_000 - 8)))
    code = f"from fabric.weights.gguf import GGUF\ntry: GGUF.open({str(path)!r})\nexcept Exception as e: print(e)"
    limit = 400 << 20

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    ran = subprocess.run([sys.executable, "-c", code], preexec_fn=bounded, capture_output=True, text=True, check=True)
    assert "cut short" in ran.stdout


# ---- writing ----


@pytest.mark.parametrize(
    ("metadata", "specs", "payloads", "sentence"),
    [
        ({"k": object()}, [], [], "kind that GGUF does not know"),
        ({"k": ["a", 1]}, [], [], "mixes kinds"),
        ({"k": 1 << 70}, [], [], "cannot be written"),
        ({}, [TensorSpec("t", 0, (1,)), TensorSpec("t", 0, (1,))], [], "same name"),
        ({}, [TensorSpec("t" * 64, 0, (1,))], [], "longer than 63"),
        ({}, [TensorSpec("t", 8, (33,))], [], "whole Q8_0 blocks"),
        ({}, [TensorSpec("t", 0, (2,))], [bytes(4)], "not the 8 bytes"),
        ({}, [TensorSpec("t", 0, (2,))], [bytes(12)], "not the 8 bytes"),
        ({}, [TensorSpec("t", 0, (2,))], [bytes(8), bytes(1)], "more tensor data"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(
    metadata: dict[str, Any], specs: list[TensorSpec], payloads: list[bytes], sentence: str
) -> None:
    with pytest.raises(FabricError, match=sentence):
        write_gguf(io.BytesIO(), metadata, specs, payloads)


def test_a_tensor_may_come_in_pieces(open_bytes: Callable[[bytes], GGUF]) -> None:
    out = io.BytesIO()
    pieces = [b"\0\0\0\0", np.ones(1, "<f4").data, np.full(1, 2, "<f4").tobytes()]
    write_gguf(out, {}, [TensorSpec("t", 0, (1,)), TensorSpec("u", 0, (2,))], pieces)
    with open_bytes(out.getvalue()) as file:
        assert decode_tensor(file, "u").tolist() == [1.0, 2.0]
