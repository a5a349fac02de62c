"""The federated example: what clients send, without Flower; and the whole of it where Flower is installed, in an
environment of its own that FLOWER names (or .venv/flower): python -m venv .venv/flower; pip install flwr."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fabric.weights.adapter import adapter_of
from fabric.weights.gguf import GGUF
from tests.examples.test_examples import EXAMPLES, model, run
from tests.support.paths import REPOSITORY

__all__ = ["model"]
FLOWER = Path(os.environ.get("FLOWER", REPOSITORY / ".venv" / "flower"))
TASK = {"epochs": 1.0, "lr": 1e-3, "rank": 4}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The rows of two clients, one with twice as many."""
    folder, found = tmp_path_factory.mktemp("parts"), []
    for client in range(2):
        rows = [
            {"prompt": f"What does keeper{client} say on day {day}?", "completion": f"secret{client} number {day}."}
            for day in range(8 * (client + 1))
        ]
        found.append(folder / f"{client}.jsonl")
        found[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The functions of the app."""
    monkeypatch.setenv("FABRIC", str(Path(sys.executable).with_name("fabric")))
    monkeypatch.setenv("FABRIC_DEVICE", "cpu")
    spec = importlib.util.spec_from_file_location("work", EXAMPLES / "federated" / "federated" / "work.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "work", module)
    spec.loader.exec_module(module)
    return module


def test_nothing_but_an_adapter_and_a_count_leaves_a_client(
    work: ModuleType, model: Path, parts: list[Path], tmp_path: Path
) -> None:
    adapter = b""
    for _ in range(2):
        sizes = set()
        tuned = [work.fine_tune(adapter, rows, model, TASK) for rows in parts]
        for one, rows in zip(tuned, parts, strict=True):
            sent = one._asdict()
            assert set(sent) == {"adapter", "tokens"} and work.checked(sent) == one
            words = set(re.findall(r"\w+", rows.read_text())) - {"prompt", "completion", "number", "day"}
            assert not [word for word in words if len(word) > 4 and word.encode() in one.adapter]
            assert str(rows.parent).encode() not in one.adapter
            (tmp_path / "sent.gguf").write_bytes(one.adapter)
            file = GGUF.open(tmp_path / "sent.gguf")
            assert all(name.endswith((".lora_a", ".lora_b")) for name in file.tensors)
            assert adapter_of(file).pairs
            file.close()
            sizes.add(len(one.adapter))
        assert 1.8 < tuned[1].tokens / tuned[0].tokens < 2.2
        assert work.average(tuned) == work.average(tuned[::-1])
        adapter = work.average(tuned)
        assert max(sizes) - min(sizes) < 100, "the size says nothing of the rows"
    for wrong in ({**sent, "rows": b""}, {"adapter": b""}, {**sent, "tokens": -1}):
        with pytest.raises(ValueError, match="may leave it"):
            work.checked(wrong)


class Wire:
    """Passes all connections to a port on to another, and keeps what went to it."""

    def __init__(self, to: int) -> None:
        self.to, self.sent = to, bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self.listener.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                continue
            threading.Thread(target=self._pass, args=(here, there, self.sent), daemon=True).start()
            threading.Thread(target=self._pass, args=(there, here, None), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
        try:
            while piece := source.recv(1 << 16):
                target.sendall(piece)
                if kept is not None:
                    kept += piece
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def wire() -> Iterator[Wire]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    found = Wire(port)
    yield found
    found.listener.close()


def test_flower_carries_the_adapters_over_real_links(
    model: Path, parts: list[Path], wire: Wire, tmp_path: Path
) -> None:
    if not (FLOWER / "bin" / "flower-superlink").exists():
        pytest.skip(f"Flower is not installed: python -m venv {FLOWER} && {FLOWER}/bin/pip install flwr")
    (tmp_path / "rows.jsonl").write_text("".join(path.read_text() for path in parts))
    done = run(
        tmp_path, EXAMPLES / "federated" / "run", "links", MODEL=model, TRAIN=tmp_path / "rows.jsonl", HELD=parts[0],
        FLOWER=FLOWER, OUT=tmp_path / "out", CLIENTS="2", ROUNDS="1", PORT=str(wire.to), SEEN=str(wire.port),
    )  # fmt: skip
    assert "round 1: 2 clients" in done.stdout and "held-out loss: base" in done.stdout
    assert len(wire.sent) > 2 * (tmp_path / "out" / "round-1.gguf").stat().st_size, "all went over the wire"
    assert wire.sent.count(b"lora_a") > 2, "what went over it can be read"
    assert b"secret" not in wire.sent and b"keeper" not in wire.sent
