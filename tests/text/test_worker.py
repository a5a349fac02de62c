"""The process that renders templates: what it may use, and that nothing it does holds up or outlives its owner."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fabric.errors import DataError
from fabric.text.worker import Ask, Worker
from tests.support.paths import REPOSITORY

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
NEVER_COMPILED = "{{ 7 ** (7 ** 9) }}"  # constants are computed while a template is compiled
ONE = [{"role": "user", "content": "Ask"}]

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@contextmanager
def working(source: str, **options: Any) -> Iterator[Worker]:
    worker = Worker(source, {"bos_token": "<s>"}, **options)
    try:
        yield worker
    finally:
        worker.stop()


def test_several_renderings_come_in_one_answer_and_one_that_fails_spoils_no_other() -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ '>' if add_generation_prompt }}"
    source += "{{ raise_exception('too few') if not messages }}"
    talk = [[[{"content": "ab"}, {"content": "cd"}], None], [[{"content": "abX"}], None]]
    asks = [Ask(), Ask(upto=1, prompt=True, base=0), Ask(upto=0), Ask(1, more=[{"content": "Y"}], base=0)]
    with working(source) as worker:
        texts = worker.render(talk, asks)
        assert [texts[0], texts[1], texts[3]] == ["<s>abcd", "<s>ab>", "<s>abXY"]
        assert isinstance(texts[2], DataError) and "too few" in str(texts[2])
        assert {"messages", "bos_token", "add_generation_prompt"} <= worker.variables()


@pytest.mark.parametrize("content", ["Ask", "x" * 5_000_000], ids=["small", "large"])
@pytest.mark.parametrize("source", [ENDLESS, NEVER_COMPILED], ids=["rendering", "compiling"])
def test_work_without_end_is_stopped_in_time_whatever_the_size_of_the_row(source: str, content: str) -> None:
    with working(source, seconds=1.0) as worker:
        began = time.monotonic()
        with pytest.raises(DataError, match="longer than 1 s"):
            worker.render([[[{"role": "user", "content": content}], None]], [Ask()])
        assert time.monotonic() - began < 5


def test_the_conversation_after_one_without_end_still_renders() -> None:
    with working("{% if messages|length > 1 %}" + ENDLESS + "{% endif %}done", seconds=1.0) as worker:
        with pytest.raises(DataError, match="longer than 1 s"):
            worker.render([[2 * ONE, None]], [Ask()])
        assert worker.render([[ONE, None]], [Ask()]) == ["done"]


def test_memory_is_bounded_while_compiling_too() -> None:
    with working("{{ 'a' * 10000000000 }}") as worker:
        (error,) = worker.render([[ONE, None]], [Ask()])
        assert isinstance(error, DataError) and "needs more than 768 MiB" in str(error)


def test_json_takes_the_options_that_templates_are_promised_and_no_function_of_theirs() -> None:
    with working(
        "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}"
    ) as worker:
        assert worker.render([[ONE, None]], [Ask()]) == ['{"a":"\\u00e9","b":1}']
    escape = "{{ [raise_exception] | tojson(default='{0.__globals__[sys].modules[os].environ}'.format) }}"
    with working(escape) as worker:
        (error,) = worker.render([[ONE, None]], [Ask()])
        assert isinstance(error, DataError) and "unexpected keyword argument 'default'" in str(error)


@linux
def test_the_worker_is_slim_sees_no_environment_and_ends_with_its_owner() -> None:
    worker = Worker("x", {})
    worker.render([[ONE, None]], [Ask()])
    process = worker._process
    assert process is not None
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "numpy" not in maps and "_native" not in maps
    assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""
    del worker
    assert process.poll() is not None


@linux
@pytest.mark.parametrize("source", ["x", ENDLESS], ids=["idle", "busy"])
def test_the_worker_dies_with_a_killed_owner(source: str) -> None:
    code = (
        "import os, signal, threading, time\n"
        "from fabric.text.worker import Ask, Worker\n"
        f"worker = Worker({source!r}, {{}})\n"
        "threading.Thread(target=worker.render, args=([[[], None]], [Ask()]), daemon=True).start()\n"
        "time.sleep(1)\n"
        "print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False, timeout=60)
    status = Path(f"/proc/{int(done.stdout)}/status")
    until = time.monotonic() + 5
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not status.exists() or "State:\tZ" in status.read_text()
