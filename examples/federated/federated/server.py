"""The server. It writes the mean of every round to OUT, a folder that its environment names."""

from __future__ import annotations

import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from federated.work import Tuned, average, checked

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    config, out, mean = context.run_config, Path(os.environ["OUT"]), b""
    for number in range(1, int(config["rounds"]) + 1):
        while len(nodes := sorted(grid.get_node_ids())) < int(config["clients"]):
            time.sleep(0.5)
        task = ConfigRecord({"adapter": mean, **{name: config[name] for name in ("epochs", "lr", "rank")}})
        asked = [
            Message(content=RecordDict({"task": task}), message_type=MessageType.TRAIN, dst_node_id=node)
            for node in nodes
        ]
        tuned = [answer(reply) for reply in grid.send_and_receive(asked)]
        mean = average(tuned)
        (out / f"round-{number}.gguf").write_bytes(mean)
        tokens = sum(one.tokens for one in tuned)
        print(
            f"round {number}: {len(tuned)} clients, {tokens} tokens, {len(mean)} bytes to each and from each",
            flush=True,
        )


def answer(reply: Message) -> Tuned:
    """What a client sent."""
    if reply.has_error():
        raise RuntimeError(f"a client failed: {reply.error}")
    if set(reply.content) != {"tuned"}:
        raise ValueError(f"a client sent {sorted(reply.content)}, and only `tuned` may leave it")
    return checked(dict(reply.content["tuned"]))
