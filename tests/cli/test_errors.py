"""Bad input, command by command: one sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import environment, fabric, one_sentence, shell


def chat(question: str, answer: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


TRAIN = ("--steps", "1", "--rank", "2", "--ctx", "64")
MODEL_COMMANDS = {
    "template": ["template", "{rows}", "-m", "{model}", "-o", "out"],
    "train": ["train", "{rows}", "-m", "{model}", "-o", "out", "--run-dir", "run", *TRAIN],
    "merge": ["merge", "-m", "{model}", "-a", "{adapter}", "-o", "out"],
    "quantize": ["quantize", "{model}", "-o", "out"],
    "eval": ["eval", "{rows}", "-m", "{model}"],
    "generate": ["generate", "-m", "{model}", "--prompt", "x", "-o", "out"],
    "inspect": ["inspect", "{model}"],
    "bench": ["bench", "-m", "{model}", "--ctx", "8", "--steps", "1"],
}


def call(name: str, folder: Path, **places: Path) -> list[str]:
    return [part.format(**places) for part in MODEL_COMMANDS[name]]


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_a_cut_model_is_refused(name: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-1000])
    ended = fabric(*call(name, tmp_path, model=cut, rows=rows, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 65, "cut.gguf", "cut short")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_what_is_no_model_is_refused(name: str, rows: Path, adapter: Path, tmp_path: Path) -> None:
    ended = fabric(*call(name, tmp_path, model=rows, rows=rows, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 65, "rows.jsonl", "GGUF")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_a_missing_model_is_named(name: str, rows: Path, adapter: Path, tmp_path: Path) -> None:
    ended = fabric(*call(name, tmp_path, model=tmp_path / "nowhere.gguf", rows=rows, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 66, "nowhere.gguf")


def replaced(path: Path, target: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert len(old) == len(new) and old in content
    target.write_bytes(content.replace(old, new))
    return target


@pytest.mark.parametrize("name", ["train", "eval", "generate", "bench"])
def test_an_unknown_architecture_is_named(name: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    foreign = replaced(tiny, tmp_path / "foreign.gguf", b"llama", b"lhama")
    ended = fabric(*call(name, tmp_path, model=foreign, rows=rows, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 65, "lhama", "llama")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train", "merge", "quantize", "eval", "generate", "bench"])
def test_a_tensor_type_that_cannot_be_decoded_is_named(
    name: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    content = bytearray(tiny.read_bytes())
    at = content.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight")
    dims = struct.unpack_from("<I", content, at)[0]
    at += 4 + 8 * dims
    assert struct.unpack_from("<I", content, at)[0] == 0
    struct.pack_into("<I", content, at, 24)  # I8: known to the format, nothing a weight can be
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(content)
    ended = fabric(*call(name, tmp_path, model=odd, rows=rows, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 65, "blk.0.ffn_down.weight", "I8")
    assert not (tmp_path / "out").exists()


ROWS = {
    "not JSON": (chat("a", "b") + "\nnot json\n", ":2"),
    "half a line": (chat("a", "b") + "\n" + chat("a", "b")[:30] + "\n", ":2"),
    "no UTF-8": (b'{"text": "\xff\xfe"}\n', ":1"),
    "a number": ("7\n", ":1"),
    "no known field": ('{"body": "x"}\n', ":1"),
    "unknown role": ('{"messages": [{"role": "wizard", "content": "x"}]}\n', ":1"),
    "no messages": ('{"messages": []}\n', ":1"),
    "span outside": ('{"text": "abc", "train": [[1, 9]]}\n', ":1"),
    "token outside": ('{"tokens": [1, 99999999], "train": [0, 1]}\n', ":1"),
    "deep": ("[" * 100000 + "\n", ":1"),
}

PASSED_ON = ("template", "token outside")  # token records go through template unread


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("template", "train", "eval") for kind in ROWS if (name, kind) != PASSED_ON],
)
def test_malformed_rows_are_told_with_their_line(
    name: str, kind: str, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    content, place = ROWS[kind]
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = fabric(*call(name, tmp_path, model=tiny, rows=bad, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 65, f"bad.jsonl{place}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", ["", "\n\n", '{"messages": [{"role": "user", "content": "hello"}]}\n', '{"text": "abc", "train": []}\n']
)
def test_rows_with_nothing_to_train_on_are_refused(content: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    ended = fabric("train", "empty.jsonl", "-m", tiny, "-o", "out", "--run-dir", "run", *TRAIN, cwd=tmp_path)
    assert ended.code == 65, ended
    assert "train" in ended.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base_is_refused(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    from tests.support.random_models import write_model
    from tests.support.shapes import Shape

    other = write_model(tmp_path / "other.gguf", Shape(hidden=96, head_dim=24))
    one_sentence(fabric("merge", "-m", other, "-a", adapter, "-o", tmp_path / "out"), 65, "adapter.gguf")
    one_sentence(fabric("eval", rows, "-m", other, "-a", adapter), 65, "adapter.gguf")
    begun = fabric(
        "train", rows, "-m", other, "-a", adapter, "-o", tmp_path / "out", "--run-dir", tmp_path / "r", *TRAIN
    )
    one_sentence(begun, 65, "adapter")
    one_sentence(fabric("merge", "-m", tiny, "-a", tiny, "-o", tmp_path / "out"), 65, "tiny.gguf")
    assert not (tmp_path / "out").exists()


def test_an_adapter_trained_beside_another_file_is_told_and_used(
    tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    other, out = tmp_path / "other.gguf", tmp_path / "out"
    assert fabric("quantize", tiny, "--type", "f16", "-o", other).code == 0
    commands = {
        "eval": ["eval", rows],
        "generate": ["generate", "--prompt", "x", "--max-tokens", "2"],
        "chat": ["generate", "--chat", "--max-tokens", "2"],
        "merge": ["merge", "-o", out, "-q"],
    }
    sentence = f"{adapter} was trained on another file than {other}"
    for name, command in commands.items():
        told = fabric(*command, "-m", other, "-a", adapter, stdin=b"hello\n")
        assert told.code == 0, told
        assert told.err.count(sentence) == (name != "merge")
        assert "another file" not in fabric(*command, "-m", tiny, "-a", adapter, stdin=b"hello\n").err
    assert sentence in fabric("merge", "-o", out, "-m", other, "-a", adapter).err


WRITERS = {
    "prepare": ["prepare", "{rows}", "-o", "{out}"],
    "template": ["template", "{rows}", "-m", "{tiny}", "-o", "{out}"],
    "train": ["train", "{rows}", "-m", "{tiny}", "-o", "{out}", "--run-dir", "{folder}/run", *TRAIN],
    "merge": ["merge", "-m", "{tiny}", "-a", "{adapter}", "-o", "{out}"],
    "quantize": ["quantize", "{tiny}", "-o", "{out}"],
    "generate": ["generate", "-m", "{tiny}", "--prompt", "x", "--max-tokens", "2", "-o", "{out}"],
    "plot": ["plot", "{folder}/m.jsonl", "-o", "{out}"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_cannot_be_written_is_told_before_any_work(
    name: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 1}\n')
    places = {"tiny": tiny, "rows": rows, "adapter": adapter, "folder": tmp_path}
    for out in (tmp_path / "no" / "such" / "folder" / "out", tmp_path):
        one_sentence(fabric(*(part.format(out=out, **places) for part in WRITERS[name])), 74, str(out))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told(name: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n')
    places = {"tiny": tiny, "rows": rows, "adapter": adapter, "folder": tmp_path}
    ended = fabric(*(part.format(out="/dev/full", **places) for part in WRITERS[name]), "-q")
    one_sentence(ended, 74, "space")
    line = " ".join(part.format(out="-", **places) for part in WRITERS[name]).replace("/run", "/run2")
    piped = shell(f"fabric {line} -q > /dev/full", tmp_path)
    one_sentence(piped, 74, "space")


def test_metrics_that_cannot_be_written_are_told_before_any_work(tiny: Path, rows: Path, tmp_path: Path) -> None:
    place = tmp_path / "no" / "such" / "m.jsonl"
    ended = fabric("train", rows, "-m", tiny, "--metrics", place, "--run-dir", tmp_path / "run", *TRAIN)
    one_sentence(ended, 74, str(place))
    assert list(tmp_path.iterdir()) == []


def test_a_result_takes_the_place_of_no_other_file(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    mine = {name: tmp_path / name for name in ("rows.jsonl", "base.gguf", "a.gguf", "m.jsonl")}
    held = {"rows.jsonl": rows.read_bytes(), "base.gguf": tiny.read_bytes(), "a.gguf": adapter.read_bytes()}
    held["m.jsonl"] = b'{"step": 1, "loss": 2.0}\n'
    for name, path in mine.items():
        path.write_bytes(held[name])
    (tmp_path / "link").symlink_to("rows.jsonl")
    run = f"--run-dir run {' '.join(TRAIN)}"
    for line in (
        "prepare rows.jsonl -o rows.jsonl",
        "prepare rows.jsonl --holdout link=0.5 -o x",
        "template rows.jsonl -m base.gguf -o link",
        f"train rows.jsonl -m base.gguf -o link {run}",
        f"train rows.jsonl -m base.gguf --metrics rows.jsonl {run}",
        f"train rows.jsonl -m base.gguf --val m.jsonl -o m.jsonl {run}",
        f"train link -m base.gguf -a a.gguf -o ./a.gguf {run}",
        "merge -m base.gguf -a a.gguf -o base.gguf",
        "quantize base.gguf -o base.gguf",
        "quantize base.gguf --calibrate rows.jsonl --save-imatrix rows.jsonl -o x",
        "eval rows.jsonl -m base.gguf --rows rows.jsonl",
        "generate rows.jsonl -m base.gguf -o rows.jsonl",
        "convert a.gguf -m base.gguf -o a.gguf",
        "plot m.jsonl -o m.jsonl",
    ):
        one_sentence(fabric(*line.split(), cwd=tmp_path), 2, "is an input")
    for line in ("prepare rows.jsonl --holdout x=0.5 -o x", f"train rows.jsonl -m base.gguf -o x --metrics x {run}"):
        one_sentence(fabric(*line.split(), cwd=tmp_path), 2, "two outputs are x")
    assert fabric("train", "rows.jsonl", "-m", "base.gguf", *run.split(), cwd=tmp_path).code == 0
    one_sentence(fabric("resume", "run", "-o", "rows.jsonl", cwd=tmp_path), 2, "is an input")
    assert {name: path.read_bytes() for name, path in mine.items()} == held


def test_rows_that_came_through_a_pipe_are_called_stdin(tiny: Path, tmp_path: Path) -> None:
    bad = (chat("a", "b") + "\nnot json\n").encode()
    ended = fabric("train", "-m", tiny, "--run-dir", "run", *TRAIN, cwd=tmp_path, stdin=bad)
    one_sentence(ended, 65, "stdin:2")
    assert list(tmp_path.iterdir()) == []


def test_a_context_that_is_too_short_is_told_as_the_reason(tiny: Path, rows: Path, tmp_path: Path) -> None:
    ended = fabric("train", rows, "-m", tiny, "--ctx", "8", "--run-dir", tmp_path / "run")
    one_sentence(ended, 65, "rows.jsonl", "cut to 8 tokens", "--ctx")


def with_number(path: Path, target: Path, key: bytes, value: int) -> Path:
    content = bytearray(path.read_bytes())
    at = content.index(key) + len(key) + 4
    struct.pack_into("<I", content, at, value)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("name", ["train", "eval", "generate", "bench"])
def test_metadata_that_does_not_fit_the_tensors_is_refused(
    name: str, tiny: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    lying = with_number(tiny, tmp_path / "lying.gguf", b"llama.attention.head_count_kv", 1)
    ended = fabric(*call(name, tmp_path, model=lying, rows=rows, adapter=adapter), cwd=tmp_path)
    one_sentence(ended, 65, "lying.gguf", "blk.0.attn_k.weight", "32 x 64, not 16 x 64")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_not_blamed_on_the_rate(tiny: Path, rows: Path, tmp_path: Path) -> None:
    content = bytearray(tiny.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.gguf").write_bytes(content)
    ended = fabric("train", rows, "-m", tmp_path / "nan.gguf", "-q", "--run-dir", tmp_path / "run", *TRAIN)
    one_sentence(ended, 65, "nan.gguf", "damaged")


def test_unreadable_files_are_named(tiny: Path, tmp_path: Path) -> None:
    one_sentence(fabric("prepare", tmp_path / "nothing.jsonl"), 66, "nothing.jsonl")
    one_sentence(fabric("merge", "-m", tiny, "-a", "x=y", "-o", "z", cwd=tmp_path), 66, "x=y")
    one_sentence(
        fabric("train", tmp_path / "nothing.jsonl", "-m", tiny, "--run-dir", tmp_path / "r"), 66, "nothing.jsonl"
    )
    one_sentence(fabric("resume", tmp_path / "nothing"), 66, "nothing")
    if os.getuid():
        hidden = tmp_path / "hidden.jsonl"
        hidden.write_text("")
        hidden.chmod(0)
        one_sentence(fabric("prepare", hidden), 66, "hidden.jsonl")


def test_an_unknown_device_or_instruction_set_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    ended = fabric("train", rows, "-m", tiny, "--device", "cpi", "--run-dir", tmp_path / "r", *TRAIN)
    one_sentence(ended, 69, "cpi")
    one_sentence(fabric("bench", "-m", tiny, "--isa", "mmx"), 69, "mmx")


def test_flags_that_make_no_sense_are_refused(tiny: Path, rows: Path) -> None:
    for arguments in (
        ["train", rows, "-m", tiny, "--rank", "0"],
        ["train", rows, "-m", tiny, "--lr", "-1"],
        ["train", rows, "-m", tiny, "--epochs", "0"],
        ["train", rows, "-m", tiny, "--dropout", "1"],
        ["train", rows, "-m", tiny, "--dropout", "-0.1"],
        ["train", rows, "-m", tiny, "--dropout", "0.99999999"],
        ["train", rows, "-m", tiny, "--neftune", "-1"],
        ["train", rows, "-m", tiny, "--neftune", "1e300"],
        ["train", rows, "-m", tiny, "--lora-plus", "0"],
        ["train", rows, "-m", tiny, "--full", "--dropout", "0.1"],
        ["train", rows, "-m", tiny, "-a", tiny, "--rslora"],
        ["train", rows, "-m", tiny, "--modules", "mlp"],
        ["train", rows, "-m", tiny, "--lr", "inf"],
        ["train", rows, "-m", tiny, "--epochs", "inf"],
        ["train", rows, "-m", tiny, "--epochs", "1e308"],
        ["train", rows, "-m", tiny, "--weight-decay", "nan"],
        ["train", rows, "-m", tiny, "--rank", "99999999999"],
        ["train", rows, "-m", tiny, "--threads", "99999999999"],
        ["train", rows, "-m", tiny, "--metrics", rows],
        ["train", rows, "-m", tiny, "--metrics", "x", "-o", "./x"],
        ["merge", "-m", tiny, "-a", f"{tiny}=nan", "-o", "z"],
        ["train", rows],
        ["merge", "-m", tiny, "-a", tiny, "--type", "q9_9", "-o", "z"],
        ["quantize", tiny, "--type", "q9_9", "-o", "z"],
        ["generate", rows, "-m", tiny, "--prompt", "x"],
        ["template", rows, "-m", tiny, "--ctx", "64"],
        ["prepare", rows, "--holdout", "x=2"],
        ["plot", "x", "--json", "-o", "y"],
    ):
        one_sentence(fabric(*arguments), 2)


def test_a_stream_that_is_no_model_is_read_no_further_than_its_first_letters(tiny: Path, tmp_path: Path) -> None:
    for command in ("quantize", f"merge -m {tiny} -a -", "inspect", "quantize < /dev/zero"):
        ended = shell(f"yes | (ulimit -f 1000; fabric {command} > out)", tmp_path)
        assert ended.code in (65, 141), ended
        one_sentence(ended._replace(code=65), 65, "letters GGUF")


def test_debug_shows_where(tmp_path: Path) -> None:
    assert "Traceback" in fabric("prepare", tmp_path / "nothing.jsonl", "--debug").err
    assert "Traceback" in fabric("prepare", tmp_path / "nothing.jsonl", env={"FABRIC_DEBUG": "1"}).err


def test_names_may_be_any_bytes_and_texts_are_utf_8(tiny: Path, rows: Path, adapter: Path, tmp_path: Path) -> None:
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as where the locale is one of UTF-8
    names = {}
    for path in (tiny, rows, adapter):
        names[path] = tmp_path / os.fsdecode(b"\xff" + path.name.encode())
        names[path].write_bytes(path.read_bytes())
    line = ["eval", names[rows], "-m", names[tiny], "-a", names[adapter], "--compare", "--json"]
    told = fabric(*line, "--rows", tmp_path / "scores.jsonl", env=strict)
    assert told.code == 0, told.err
    assert "\udcff" in json.loads(told.out)["adapters"][0]["name"]
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 12 and "\udcff" in scores[0]["row"]
    content = names[tiny].read_bytes().replace(b"random", b"r\xffndom", 1)
    names[tiny].write_bytes(content)
    assert json.loads(fabric("inspect", names[tiny], "--json", env=strict).out)["name"] == "r?ndom"
    assert fabric("inspect", names[tiny], env=strict).code == 0
    for flags in (["--prompt", "\udcff"], ["--prompt", "x", "--stop", "\udcff"], ["--chat", "--system", "\udcff"]):
        one_sentence(fabric("generate", "-m", tiny, *flags), 2, "UTF-8")


def test_an_alpha_that_a_file_would_hold_as_0_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    line = ["train", rows, "-m", tiny, "-o", tmp_path / "a.gguf", "--steps", "1", "--rank", "2", "--ctx", "64"]
    one_sentence(fabric(*line, "--alpha", "1e-300", cwd=tmp_path), 2, "--alpha", "x>=1e-37")
    assert fabric(*line, "--alpha", "1e-37", cwd=tmp_path).code == 0


def test_a_run_that_kept_nothing_names_no_way_to_go_on(tiny: Path, rows: Path, tmp_path: Path) -> None:
    ended = shell(f"ulimit -f 1; fabric train {rows} -m {tiny} -o a.gguf --steps 2 --ctx 64 --rank 1", tmp_path)
    assert ended.code == 74 and "run.json failed: file too large" in ended.err.splitlines()[-1], ended
    assert "resume" not in ended.err and not (tmp_path / ".fabric").exists()


def test_a_file_system_without_locks_is_no_run_of_another(tiny: Path, rows: Path, tmp_path: Path) -> None:
    script = """if True:
        import errno, fcntl, os, sys
        def unsupported(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock = unsupported
        from fabric.cli import main
        main()"""
    line = ["train", rows, "-m", tiny, "-o", "a.gguf", "--steps", "1", "--ctx", "64", "--rank", "1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, line)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"cannot be locked" in done.stderr and (tmp_path / "a.gguf").exists(), done.stderr
