"""`fabric generate` and stock llama.cpp (the package xllamacpp) on the same model and processor, in turns:

    python benchmarks/generate.py --model model.gguf [--prompt 256] [--tokens 64] [--batch 8] [--rounds 3] [--threads 2]

Each run is a process of its own: random tokens as the prompt, then greedy tokens after it, one sequence and then
`--batch` of them together; a first pass warms up. Prints the tokens/s of prompt processing and of decoding (its median
token) in the best of the rounds, and the ratio to llama.cpp, whose settings are its own defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Step = Callable[[list[list[int]], int], list[int]]
"""Token ids of each sequence and the position they begin at -> the likeliest next token of each."""

PEERS = ("llama.cpp", "fabric-bf16", "fabric-f32")
MEASURES = ("prompt", "decode", "decode_batch")


def llama_cpp(model: str, threads: int, sequences: int, context: int) -> tuple[Step, int]:
    """Stock llama.cpp through its C interface, and the size of the vocabulary."""
    from tests.support.llama_cpp import _lib

    lib = _lib()
    loaded = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
    n_vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(loaded)))
    params = lib.llama_context_default_params()
    params.words[0], params.words[3] = context * sequences, sequences  # n_ctx, n_seq_max
    handle = lib.llama_init_from_model(loaded, params)
    lib.llama_set_n_threads(handle, threads, threads)
    batch = lib.llama_batch_init(context * sequences, 0, 1)

    def step(tokens: list[list[int]], position: int) -> list[int]:
        if position == 0:
            lib.llama_memory_clear(lib.llama_get_memory(handle), True)
        n, last = 0, []
        for sequence, ids in enumerate(tokens):
            for i, token in enumerate(ids):
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, position + i, 1
                batch.seq_id[n][0], batch.logits[n] = sequence, i + 1 == len(ids)
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        if lib.llama_decode(handle, batch) != 0:
            raise RuntimeError("llama.cpp does not evaluate the tokens")
        rows = (np.ctypeslib.as_array(lib.llama_get_logits_ith(handle, at), (n_vocab,)) for at in last)
        return [int(row.argmax()) for row in rows]

    return step, n_vocab


def fabric(model: str, threads: int, sequences: int, context: int, precision: str) -> tuple[Step, int]:
    """The lanes that `fabric generate` decodes with."""
    from fabric.core import Device
    from fabric.generation.answer import Answer
    from fabric.generation.decoding import Lane, advance
    from fabric.generation.sampling import pick
    from fabric.generation.settings import GenerateSettings
    from fabric.models.inference import Decoder, open_weights
    from fabric.text.tokenizer import Tokenizer

    weights = open_weights(model, Device("cpu", threads=threads))
    decoder = Decoder(weights, context * sequences, context * sequences, sequences, precision)
    tokenizer = Tokenizer.from_gguf(weights.gguf.metadata)
    settings = GenerateSettings(model)
    lanes: list[Lane] = []

    def step(tokens: list[list[int]], position: int) -> list[int]:
        if position == 0:
            lanes[:] = [Lane(i, i * context, context, Answer(tokenizer, 0), []) for i in range(len(tokens))]
        for lane, ids in zip(lanes, tokens, strict=True):
            lane.pending = list(ids)
        found = {lane.number: pick(logits, settings, lane.number, 0) for lane, logits in advance(decoder, lanes)}
        return [found[lane.number] for lane in lanes]

    return step, decoder.vocab_size


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of one peer in this process."""
    context = args.prompt + args.tokens
    if args.worker == "llama.cpp":
        step, vocab = llama_cpp(args.model, args.threads, args.batch, context)
    else:
        step, vocab = fabric(args.model, args.threads, args.batch, context, args.worker.split("-")[1])
    prompt = np.random.default_rng(0).integers(vocab // 2, size=args.prompt).tolist()
    found: dict[str, float] = {}
    for sequences, name in ((1, "decode"), (args.batch, "decode_batch")):
        step([prompt] * sequences, 0)
        began = time.perf_counter()
        tokens = step([prompt] * sequences, 0)
        at = [time.perf_counter()]
        for i in range(args.tokens):
            tokens = step([[token] for token in tokens], args.prompt + i)
            at.append(time.perf_counter())
        found.setdefault("prompt", args.prompt / (at[0] - began))
        found[name] = sequences / statistics.median(np.diff(at).tolist())
    return found


def compare(args: argparse.Namespace) -> None:
    """Every peer in turn, `--rounds` times over, and the table."""
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in args.peers}
    for _ in range(args.rounds):
        for peer in args.peers:
            command = [sys.executable, __file__, "--worker", peer, "--model", args.model]
            for name in ("prompt", "tokens", "batch", "threads"):
                command += [f"--{name}", str(getattr(args, name))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[peer].append(json.loads(done.stdout.splitlines()[-1]))
    speed = {peer: {m: max(run[m] for run in runs) for m in MEASURES} for peer, runs in found.items()}
    titles = (f"prompt of {args.prompt}", "decode, 1 row", f"decode, {args.batch} rows")
    print(f"{'tokens/s':14}" + "".join(f"{title:>24}" for title in titles))
    for peer, values in speed.items():
        first = speed[args.peers[0]]
        print(f"{peer:14}" + "".join(f"{values[m]:16.1f} ({values[m] / first[m]:5.2f})" for m in MEASURES))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare generation speed with stock llama.cpp on this processor.")
    parser.add_argument("--model", required=True, help="a GGUF")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS[:2])
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args)))
    else:
        compare(args)


if __name__ == "__main__":
    main()
