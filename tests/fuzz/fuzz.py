"""A coverage-guided fuzzer of what reads bytes of strangers: GGUF files, rows, configuration files, run directories,
chat templates; and of what is computed from them (`models`), which a core built with sanitizers should run.

    python -m tests.fuzz.fuzz gguf                  # until Ctrl-C
    python -m tests.fuzz.fuzz rows --runs 5000      # a fixed number of inputs, always the same ones
    python -m tests.fuzz.fuzz models --seconds 60   # for about a minute

Inputs are mutated from small good ones; what reaches lines in an order not seen before joins them (`sys.settrace`, in
the files of the target alone). Every input must end in a result or in a FabricError of one line, within SECONDS, and
with memory bounded by its size. One that does not is written to build/fuzz and ends the search with exit code 1; one
that ends the process is left there as NAME-running.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import click

from fabric.cli.app import load
from fabric.core import Device
from fabric.errors import FabricError
from fabric.files import open_output
from fabric.models.inference import Scorer
from fabric.models.recorder import Weights
from fabric.weights.formats import BY_NAME, F32
from fabric.weights.gguf import GGUF, TensorSpec, decode_tensor, write_gguf
from tests.fuzz import folders, models

SECONDS = 10  # of the processor, an input, traced
MEMORY_BYTES, MEMORY_TIMES = 8 << 20, 300  # an input may take so much, and so many times its size
LARGEST = 1 << 16
FOUND = Path("build/fuzz")


@dataclass(frozen=True)
class Target:
    """`run(folder, data)` reads one input; its coverage is counted in `files`, ends of paths."""

    run: Callable[[Path, bytes], object]
    files: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...]
    make: Callable[[random.Random], bytes] | None = None
    """Inputs that are whole but odd: every other one, or all where there are no seeds."""


# ---- GGUF: everything that a file claims is asked for ----


def model_file(
    odd: Callable[[dict[str, object], dict[str, tuple[int, ...]]], None] | None = None, spare: bool = False
) -> bytes:
    """A model of one block with a vocabulary of letters; `odd` changes its metadata and shapes, and `spare` adds a
    tensor in blocks that no model reads."""
    letters = [*"abcdefgh", "Ġ", "ab", "<s>", "</s>"]
    metadata: dict[str, object] = {
        "general.architecture": "llama", "general.name": "x", "llama.block_count": 1, "llama.embedding_length": 8,
        "llama.context_length": 64, "llama.feed_forward_length": 8, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.token_type": [1] * 10 + [3, 3], "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 10, "tokenizer.ggml.eos_token_id": 11,
        "tokenizer.chat_template": "{{ messages }}", "fabric.history": ['{"command":"train"}'],
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (12, 8), "output_norm.weight": (8,)}
    for part in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{part}.weight"] = (8, 8)
    shapes |= {f"blk.0.{part}.weight": (4, 8) for part in ("attn_k", "attn_v")}
    shapes |= {f"blk.0.{part}.weight": (8,) for part in ("attn_norm", "ffn_norm")}
    if odd:
        odd(metadata, shapes)
    specs = [TensorSpec(name, F32, shape) for name, shape in shapes.items()]
    if spare:
        specs.append(TensorSpec("spare.weight", BY_NAME["Q4_0"].type, (2, 32)))
    out = io.BytesIO()
    write_gguf(out, metadata, specs, [bytes(spec.nbytes) for spec in specs])
    return out.getvalue()


VALUES: tuple[object, ...] = (
    0, 1, -1, 3, 8, 4096, (1 << 31) - 1, -(1 << 31), 1 << 40, 0.0, -1.0, 1e-30, 3e38, float("nan"), float("inf"), True,
    "", "x", "gpt2", "llama", "gemma3", "qwen3", "\u0120" * 40, [1], [0.5], ["a", "b"], ["a"] * 12,
    [1 << 30] * 12, [-1] * 12,
)  # fmt: skip


def odd_model(rng: random.Random) -> bytes:
    """A whole file in which some values, and some shapes, are others."""

    def odd(metadata: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> None:
        if rng.random() < 0.3:
            metadata["general.architecture"] = name = rng.choice(["gemma3", "qwen2", "qwen3"])
            metadata |= {key.replace("llama.", f"{name}."): value for key, value in list(metadata.items())}
        for key in rng.sample(
            [*metadata, "llama.rope.dimension_count", "llama.rope.scaling.type"], rng.choice([1, 1, 2, 4])
        ):
            metadata[key] = rng.choice(VALUES)
            if rng.random() < 0.2:
                del metadata[key]
        for name in rng.sample([*shapes], rng.choice([0, 0, 1, 2])):
            shapes[name] = rng.choice([(8,), (1,), (4, 8), (8, 4), (12, 8), (1, 1), (2, 2, 2), (16, 8)])

    try:
        return model_file(odd, spare=rng.random() < 0.3)
    except FabricError:  # what cannot be written is no input
        return model_file()


def pieces_file() -> bytes:
    """A vocabulary of scored pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a"]
    out = io.BytesIO()
    metadata: dict[str, object] = {
        "general.architecture": "gemma3", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0] * len(pieces), "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 3,
    }  # fmt: skip
    write_gguf(out, metadata, [], [])
    return out.getvalue()


def adapter_file() -> bytes:
    """A LoRA pair."""
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    specs = [
        TensorSpec(f"blk.0.attn_q.weight.lora_{part}", F32, shape) for part, shape in (("a", (2, 8)), ("b", (8, 2)))
    ]
    out = io.BytesIO()
    write_gguf(out, {**metadata, "adapter.lora.alpha": 4.0}, specs, [bytes(spec.nbytes) for spec in specs])
    return out.getvalue()


def read_gguf(folder: Path, data: bytes) -> None:
    """Reads whatever the file has; each reader may refuse it on its own."""
    from fabric.models import architecture_of
    from fabric.text.tokenizer import Tokenizer
    from fabric.weights.adapter import adapter_of
    from fabric.weights.inspect import summary

    path = folder / "any.gguf"
    path.write_bytes(data)
    with GGUF.open(path) as file:
        readers: list[Callable[[], object]] = [
            lambda: json.dumps(summary(file)),
            lambda: [decode_tensor(file, name) for name in file.tensors],
            lambda: adapter_of(file),
            lambda: architecture_of(file).read_config(file),
            lambda: record(file),
            lambda: Tokenizer.from_gguf(file.metadata).encode("ab <s> \u00e9"),
        ]
        for reader in readers:
            with refusals():
                reader()


def record(file: GGUF) -> None:
    """Records and plans the graph that training would run."""
    with contextlib.closing(Device("cpu", threads=1)) as device, contextlib.closing(Weights(file, device)) as weights:
        scorer = Scorer(weights, 8, "f32")
        scorer.close()


# ---- rows: records, and everything that prepare takes for rows ----

ROWS = (
    b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"label":"x"}\n',
    b'{"prompt":"a","completion":"b"}\n{"text":"a"}\n',
    b'{"text":"abc","train":[[0,1],[2,3]],"literal":[[1,2]]}\n{"tokens":[1,2,3],"train":[0,1,1]}\n',
    b'{"instruction":"a","input":"b","output":"c"}\n{"conversations":[{"from":"human","value":"a"}]}\n',
    b'{"question":"a","answer":"b"}\n{"messages":[{"role":"tool","content":"1"}],"tools":[{"name":"f"}]}\n',
    b'[{"prompt":"a","completion":"b"},\n {"text":"a"}]',
    b'prompt,completion\n"a ""b""",c\nd,e\n',
    b"prompt\tcompletion\na\tb\n",
    b"sep=;\r\nquestion;answer\r\na;1.50\r\n",
    "prompt|completion\na|b\n".encode("utf-16"),
    b'{"instruction":"a","history":[["b","c"]],"context":["d"],"output":"e","system":"f","n":[1.50,-0]}\n',
    b'{"prompt":[{"role":"developer","content":[{"type":"text","text":"a"}]}],"completion":[{"role":"assistant",'
    b'"content":"b","weight":0}],"tools":"[{\\"name\\":\\"f\\"}]"}\n',
    b'{"conversations":[{"from":"function_call","value":"{\\"name\\":\\"f\\"}"},{"from":"observation","value":"a"}]}\n',
    "one\n\ntwo \u00e9\r\n".encode(),
)
FORMS = ("auto", "jsonl", "json", "csv", "tsv", "text", "paragraphs")


def read_rows(folder: Path, data: bytes) -> None:
    """As records, and through prepare in one of its formats, with one of its settings; what it writes must be read."""
    from fabric.data.prepare import prepare
    from fabric.data.records import read_records
    from fabric.data.settings import HoldOut, PrepareSettings

    path, choice = folder / "any", sum(data[:64])
    path.write_bytes(data)
    with refusals():
        for record in read_records(str(path)):
            assert record.kind
    held = (HoldOut(str(folder / "held"), 0.5),) if choice % 3 == 0 else ()
    settings = PrepareSettings(
        (str(path),), FORMS[choice % len(FORMS)], normalize=choice % 2 == 0, drop_duplicates=choice % 5 == 0,  # type: ignore[arg-type]
        hold_out=held, shuffle=choice % 4 == 0, on_error="skip" if choice % 7 else "stop", max_chars=10_000,
    )  # fmt: skip
    written = None
    with refusals(), open_output(str(folder / "out"), text=True) as out:
        written = prepare(settings, out).written
    if written is not None:
        assert sum(1 for _ in read_records(str(folder / "out"))) == written


# ---- configuration files ----

TOML = (
    b"threads = 2\n[train]\nrank = 16\nlr = 1e-4\nmodules = 'all'\n",
    b"height = 3\n[plot]\ncolumns = \"loss\"\ntitle = '''a\nb'''\n[prepare]\nfield = ['a=b']\n",
    b"train.rank = 3\n'quiet' = true\n\"json\" = false\n[eval]\nadapter = ['a', 'b']\n",
)


@cache
def train() -> click.Command:
    """The command, whose making takes longer than an input."""
    return load("train")


def read_toml(folder: Path, data: bytes) -> None:
    """As a file of defaults of `train`."""
    from fabric.cli.config import defaults

    path = folder / "any.toml"
    path.write_bytes(data)
    with refusals():
        defaults(train(), ["--config", str(path)])


# ---- run directories: `resume` goes on with one in which a file is another ----

CHECKPOINT = "step-00000002.ckpt"
PARTS = ("run.json", CHECKPOINT, "metrics.jsonl", "best.ckpt")  # an input begins with the number of the one that it is


@cache
def finished_run() -> dict[str, bytes]:
    """The files of a run of two steps, whose base and rows lie in a folder that stays until the end."""
    from fabric.training.run import train
    from fabric.training.settings import Silent, TrainSettings

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "base.gguf").write_bytes(model_file())
    rows = "".join(f'{{"tokens":[1,2,{i}],"train":[0,1,1]}}\n' for i in range(4))  # equal ones would not be parted
    (folder / "rows.jsonl").write_text(rows)
    files = {"data": str(folder / "rows.jsonl"), "model": str(folder / "base.gguf"), "run_dir": str(folder / "run")}
    shape = {"rank": 1, "ctx": 8, "batch": 2, "val": "0.5", "eval_every": 1, "patience": 9, "steps": 2, "device": "cpu"}
    train(TrainSettings(**files, **shape, output=str(folder / "a.gguf")), Silent())  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in (folder / "run").iterdir()}


def part(name: str, data: bytes) -> bytes:
    """An input; what the digest of a checkpoint is made of stands without it."""
    return bytes([PARTS.index(name)]) + (data[:-32] if name.endswith(".ckpt") else data)


def odd_run(rng: random.Random) -> bytes:
    """A run.json with fingerprints that fit, or the head of a checkpoint, in which some values are others."""
    from fabric.training.settings import RunSettings

    name = rng.choice(["run.json", CHECKPOINT, "best.ckpt"])
    text, _, rest = finished_run()[name].partition(b"\n" if name != "run.json" else b"\0")
    document = json.loads(text)
    places = [document, document["settings"] if name == "run.json" else document["totals"]]
    for place in rng.choices(places, k=rng.choice([1, 1, 2, 4])):
        key = rng.choice([*place, "spare"])
        place[key] = rng.choice([*VALUES, None, {}, 2, 0.5, "/nonexistent/x", "-", "a\0b", "\ud800", "0.5"])
        if rng.random() < 0.2:
            del place[key]
    if name != "run.json":
        return part(name, json.dumps(document).encode() + b"\n" + rest)
    with contextlib.suppress(FabricError, TypeError, AttributeError, KeyError):
        document["fingerprints"] = RunSettings.from_json(document["settings"]).fingerprints()
    return part(name, json.dumps(document).encode())


def read_run_directory(folder: Path, data: bytes) -> None:
    """Goes on with the run, which may write nothing outside its directory."""
    from fabric.training.resume import resume
    from fabric.training.settings import Silent

    run, name = folder / "run", PARTS[data[0] % len(PARTS)] if data else PARTS[0]
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    for other, content in finished_run().items():
        (run / other).write_bytes(content)
    digest = hashlib.sha256(data[1:]).digest() if name.endswith(".ckpt") else b""
    (run / name).write_bytes(data[1:] + digest)
    with refusals():
        resume(str(run), Silent())
    assert {path.name for path in folder.iterdir()} == {"run"}, "something outside the run directory was written"


# ---- templates: the worker must refuse or render; what happens in it is bounded by the system ----

TEMPLATES = (
    b"{% for m in messages %}{{ m.role + m['content'] }}{% endfor %}",
    b"{% set ns = namespace(x=1) %}{% macro f(a) %}{{ a|tojson }}{% endmacro %}{{ f(messages) }}{{ ns.x }}",
    b"{{ strftime_now('%Y') }}{% if tools %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content|trim }}",
    b"{% generation %}{{ 'a' * 9 }}{{ range(9)|list }}{% endgeneration %}{{ messages[::-1]|join(',') }}",
)


def read_template(folder: Path, data: bytes) -> None:
    """Renders one conversation."""
    from fabric.text.template import ChatTemplate

    with refusals(), contextlib.closing(ChatTemplate(data.decode("utf-8", "replace"), "<s>", "</s>")) as template:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        assert isinstance(template.render(chat, [{"name": "f"}], True), str)
        template.spans(chat)


TARGETS = {
    "models": Target(models.use, (), list, (), models.made),
    "gguf": Target(
        read_gguf,
        ("weights/gguf.py", "weights/adapter.py", "text/tokenizer.py", "text/vocabulary.py", "models/config.py",
         "models/keys.py", "fields.py", "weights/gguf_parts.py"),
        lambda: [model_file(), model_file(spare=True), pieces_file(), adapter_file()],
        (b"GGUF", b"\x03\0\0\0", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x08\0\0\0", b"\x09\0\0\0",
         b"general.alignment", b"split.count", b"tokenizer.ggml.scores", b"llama.rope.dimension_count", b"gemma3",
         b"qwen3", b"\x80"),
        odd_model,
    ),
    "rows": Target(
        read_rows,
        ("data/jsonl.py", "data/records.py", "data/raw.py", "data/shapes.py", "data/prepare.py", "data/index.py",
         "data/lines.py", "data/messages.py"),
        lambda: list(ROWS),
        (b"null", b"true", b"1e999", b"-1", b"9" * 30, b'"', b"{", b"[", b"]", b"}", b",", b":", b"\n", b"\r", b"\0",
         b"\xef\xbb\xbf", b"\\ud800", b"\xff", b'"messages"', b'"role"', b'"train"', b'"tokens"', b'"tool_calls"',
         b'"history"', b'"context"', b'"system"', b'"from"', b'"value"', b"1.50", b"-0", b";", b"|", b"\xff\xfe"),
    ),
    "toml": Target(
        read_toml,
        ("cli/config.py",),
        lambda: list(TOML),
        (b"[", b"]", b"[[", b"=", b"{", b"}", b'"', b"'", b"\n", b"train", b"rank", b"model", b"inf", b"nan", b".",
         b"#", b"1979-05-27", b"0x" + b"f" * 5000, b"8.5", b"\\u0000", b"data"),
    ),
    "checkpoints": Target(
        read_run_directory,
        ("runs/directory.py", "training/checkpoint.py", "training/resume.py", "training/metrics.py",
         "training/check.py", "training/settings.py"),
        lambda: [part(name, finished_run()[name]) for name in PARTS],
        (b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 30, b'"', b"{", b"[", b"]", b"}", b",", b":", b"\n", b"\0",
         b'"step"', b'"totals"', b'"n"', b'"arrays"', b'"place"', b'"extended"', b'"../../x"', b'"-"'),
        odd_run,
    ),
    "folders": Target(
        lambda folder, data: folders.convert(folder, data, adapters=False),
        ("huggingface/config.py", "huggingface/checkpoint.py", "huggingface/safetensors.py", "huggingface/bpe.py",
         "huggingface/tokenizer.py", "huggingface/tekken.py", "huggingface/vocabulary.py", "fields.py"),
        lambda: folders.seeds(adapters=False),
        folders.WORDS,
        lambda rng: folders.odd(rng, adapters=False),
    ),
    "adapters": Target(
        lambda folder, data: folders.convert(folder, data, adapters=True),
        ("huggingface/peft.py", "huggingface/patterns.py", "huggingface/safetensors.py", "fields.py"),
        lambda: folders.seeds(adapters=True),
        folders.WORDS,
        lambda rng: folders.odd(rng, adapters=True),
    ),
    "template": Target(
        read_template,
        (),
        lambda: list(TEMPLATES),
        (b"{{", b"}}", b"{%", b"%}", b"__class__", b"|attr('x')", b"range(99999)", b"* 99999999", b"messages", b"~",
         b".format", b"{% for i in range(99999) %}", b"{% endfor %}", b"{% include 'x' %}", b"cycler", b"lipsum(99)",
         b"self", b"|indent(99999999)", b"%99999999d", b"|replace('', messages|string)", b"{% endraw %}", b"{% raw %}"),
    ),
}  # fmt: skip


# ---- the search ----


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Lets errors in one line pass, and nothing else."""
    try:
        yield
    except FabricError as error:
        assert "\n" not in str(error), f"an error of several lines: {error!r}"


class TooLong(BaseException):
    """An input that took longer than SECONDS."""


def mutated(rng: random.Random, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the corpus after a few edits."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 2, 4, 8, 30, 300]))
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:at] = rng.choice(words)
        elif kind == 2:
            word = rng.choice(words)
            data[at : at + len(word)] = word
        elif kind == 3:
            del data[at:end]
        elif kind == 4:
            data[at:at] = data[at:end] * rng.choice([1, 2, 50])
        elif kind == 5:
            data[at : at + 8] = rng.choice([0, 1, 255, 1 << 31, 1 << 40, (1 << 64) - 1]).to_bytes(8, "little")
        elif kind == 6:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 16]))
        else:
            other = rng.choice(corpus)
            data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data[:LARGEST])


class Coverage:
    """Pairs of lines that followed each other in the files of a target."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files, self.seen, self.new = files, set[tuple[int, int, int]](), False
        self.known: dict[str, bool] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """What settrace calls."""
        name = frame.f_code.co_filename
        if name not in self.known:
            self.known[name] = name.endswith(tuple(self.files))
        return self.lines(frame) if self.known[name] else None

    def lines(self, frame: FrameType) -> Any:
        """A tracer of one call."""
        code, last = id(frame.f_code), 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            edge = (code, last, frame.f_lineno)
            if edge not in self.seen:
                self.seen.add(edge)
                self.new = True
            last = frame.f_lineno
            return trace

        return trace


def once(target: Target, folder: Path, data: bytes, coverage: Coverage) -> str:
    """Runs one input; what was wrong with it, or nothing."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    coverage.new = False
    signal.signal(signal.SIGPROF, ring)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    problem = ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    if target.files:
        sys.settrace(coverage)
    try:
        target.run(folder, data)
    except FabricError as error:
        problem = "an error of several lines" if "\n" in str(error) else ""
    except TooLong:
        problem = f"took longer than {SECONDS} s"
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {error}"
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_PROF, 0)
    taken = tracemalloc.get_traced_memory()[1] - before
    if not problem and taken > MEMORY_BYTES + MEMORY_TIMES * len(data):
        problem = f"took {taken / 2**20:.0f} MiB for {len(data)} bytes"
    return problem


def search(name: str, runs: int, seed: int, seconds: float = 0) -> int:
    """Looks for inputs that go wrong; returns how many inputs were tried, or raises SystemExit at the first."""
    target, rng = TARGETS[name], random.Random(seed)
    coverage, corpus = Coverage(target.files), target.seeds()
    seeds, tried, end = len(corpus), 0, time.monotonic() + seconds
    FOUND.mkdir(parents=True, exist_ok=True)
    running = FOUND / f"{name}-running"
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(runs) if runs else count():
            if seconds and time.monotonic() > end:
                break
            if i < seeds:
                data = corpus[i]
            elif target.make and (i % 2 or not corpus):
                data = target.make(rng)
            else:
                data = mutated(rng, corpus, target.words)
            running.write_bytes(data)
            tried = i + 1
            if problem := once(target, Path(scratch), data, coverage):
                running.rename(FOUND / f"{name}-{i}")
                print(f"{name}, input {i} ({FOUND / f'{name}-{i}'}): {problem}", file=sys.stderr)
                raise SystemExit(1)
            if coverage.new and target.files:
                corpus.append(data)
            if i % 1000 == 999:
                print(f"{name}: {i + 1} inputs, {len(corpus)} kept, {len(coverage.seen)} steps", file=sys.stderr)
    running.unlink(missing_ok=True)
    print(json.dumps({"target": name, "runs": tried, "kept": len(corpus), "steps": len(coverage.seen)}))
    return tried


def main() -> None:
    """One target, so many inputs or for ever; or one input from a file."""
    parser = argparse.ArgumentParser(description="Fuzzes one reader.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="inputs to try; 0: until stopped")
    parser.add_argument("--seconds", type=float, default=0, metavar="S", help="stop after so long; 0: never")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this one input")
    given = parser.parse_args()
    if given.input is None:
        search(given.target, given.runs, given.seed, given.seconds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        TARGETS[given.target].run(Path(scratch), given.input.read_bytes())


if __name__ == "__main__":
    main()
