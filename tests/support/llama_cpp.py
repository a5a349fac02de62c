"""Stock llama.cpp, as it lies inside the xllamacpp package, spoken to through its C interface with ctypes: tests ask it
for logits at every position, tokens of a text and the effect of an adapter, which the package's own server hides.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

F32 = 0


class _Params(ctypes.Structure):
    """A parameter struct of unknown tail: large enough for any release, passed by value, edited by offset."""

    _fields_ = [("words", ctypes.c_int32 * 128)]


class _Traits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("decode", ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def available() -> bool:
    """Whether xllamacpp is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_silence = _LOG(lambda level, text, data: None)
_library: ctypes.CDLL | None = None


def _lib() -> ctypes.CDLL:
    global _library
    if _library is not None:
        return _library
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise RuntimeError("xllamacpp is not installed: pip install xllamacpp")
    lib = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    p, i32 = ctypes.c_void_p, ctypes.c_int32
    for name, result, *arguments in (
        ("llama_log_set", None, p, p),
        ("llama_backend_init", None),
        ("llama_model_default_params", _Params),
        ("llama_context_default_params", _Params),
        ("llama_model_load_from_file", p, ctypes.c_char_p, _Params),
        ("llama_init_from_model", p, p, _Params),
        ("llama_model_get_vocab", p, p),
        ("llama_vocab_n_tokens", i32, p),
        ("llama_set_n_threads", None, p, i32, i32),
        ("llama_tokenize", i32, p, ctypes.c_char_p, i32, ctypes.POINTER(i32), i32, ctypes.c_bool, ctypes.c_bool),
        ("llama_batch_init", _Batch, i32, i32, i32),
        ("llama_batch_free", None, _Batch),
        ("llama_decode", i32, p, _Batch),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), p, i32),
        ("llama_get_memory", p, p),
        ("llama_memory_clear", None, p, ctypes.c_bool),
        ("llama_adapter_lora_init", p, p, ctypes.c_char_p),
        ("llama_set_adapters_lora", i32, p, ctypes.POINTER(p), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)),
        ("llama_free", None, p),
        ("llama_model_free", None, p),
        ("ggml_get_type_traits", ctypes.POINTER(_Traits), ctypes.c_int),
        ("ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, p, p, *[ctypes.c_int64] * 3, p),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(ctypes.cast(_silence, p), None)
    lib.llama_backend_init()
    _library = lib
    return lib


def encode(type: int, values: npt.NDArray[np.float32], room: int, importance: npt.NDArray[np.float32] | None) -> bytes:
    """Rows of values as stock llama.cpp encodes them, in `room` bytes; importance: one weight a column."""
    values, out = np.ascontiguousarray(values, np.float32), ctypes.create_string_buffer(room)
    weights = None if importance is None else importance.ctypes.data
    done = _lib().ggml_quantize_chunk(type, values.ctypes.data, out, 0, *values.shape, weights)
    if done != room:
        raise RuntimeError(f"llama.cpp encodes to {done} bytes, not {room}")
    return out.raw


def decode(type: int, data: bytes, n: int) -> npt.NDArray[np.float32]:
    """`n` elements as stock llama.cpp decodes them."""
    out = np.empty(n, np.float32)
    _lib().ggml_get_type_traits(type).contents.decode(data, out.ctypes.data, n)
    return out


def _context_params(lib: ctypes.CDLL, n_ctx: int) -> _Params:
    """Exact settings: no flash attention, keys and values in F32, logits of every position."""
    params = lib.llama_context_default_params()
    words = params.words
    if list(words[:4]) != [512, 2048, 512, 1]:
        raise RuntimeError("this release of llama.cpp lays llama_context_params out in a way these tests do not know")
    words[0] = words[1] = words[2] = n_ctx
    unset = next(i for i in range(4, 32) if list(words[i : i + 4]) == [-1] * 4)  # scaling, pooling, attention, flash
    words[unset + 3] = 0
    for i in range(4, unset):  # outputs of a sequence, where the release limits them
        if words[i] == 1:
            words[i] = n_ctx
    defrag = next(i for i in range(unset + 9, 64) if words[i] == struct.unpack("<i", struct.pack("<f", -1.0))[0])
    types = next(i for i in range(defrag + 1, 64) if list(words[i : i + 2]) == [1, 1])
    words[types] = words[types + 1] = F32
    return params


class Llama:
    """A model in stock llama.cpp, with at most one adapter. Close it, or use `with`."""

    def __init__(
        self, model: str | Path, adapter: str | Path | None = None, n_ctx: int = 512, threads: int = 2
    ) -> None:
        self._context = self._model = None
        self._lib = lib = _lib()
        self._model = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.n_ctx = n_ctx
        self._context = lib.llama_init_from_model(self._model, _context_params(lib, n_ctx))
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {model}")
        lib.llama_set_n_threads(self._context, threads, threads)
        if adapter is not None:
            handle = lib.llama_adapter_lora_init(self._model, str(adapter).encode())
            if not handle:
                raise RuntimeError(f"llama.cpp does not load the adapter {adapter}")
            handles, scales = (ctypes.c_void_p * 1)(handle), (ctypes.c_float * 1)(1.0)
            if lib.llama_set_adapters_lora(self._context, handles, 1, scales) != 0:
                raise RuntimeError(f"llama.cpp does not apply the adapter {adapter}")

    def tokenize(self, text: str, special: bool = True, bos: bool = False) -> list[int]:
        """Token ids; `special`: text that names a control token becomes it."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, bos, special)
        if count < 0:
            raise RuntimeError("llama.cpp needs more room for the tokens than the text has bytes")
        return list(ids[:count])

    def logits(self, tokens: Sequence[int], last: int | None = None) -> npt.NDArray[np.float32]:
        """(len(tokens), vocabulary) after each token, or after the `last` ones, from an empty cache."""
        lib, n = self._lib, len(tokens)
        first = n - last if last else 0
        if n > self.n_ctx:
            raise ValueError(f"{n} tokens do not fit a context of {self.n_ctx}")
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, i >= first
            if lib.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama.cpp does not evaluate the tokens")
            rows = [
                np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, i), (self.n_vocab,))
                for i in range(first, n)
            ]
            return np.stack(rows)
        finally:
            lib.llama_batch_free(batch)

    def close(self) -> None:
        """Frees the context and the model (an adapter goes with its model)."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
