"""A client. Its environment says where it keeps its rows (ROWS, with {} for the number of the client) and its model
(MODEL); the server has no say in that."""

from __future__ import annotations

import os

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federated.work import fine_tune

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A round: an adapter in, one that was trained on, and a count, out."""
    task = dict(message.content["task"])
    rows = os.environ["ROWS"].format(context.node_config["partition-id"])
    tuned = fine_tune(task.pop("adapter"), rows, os.environ["MODEL"], task)
    return Message(content=RecordDict({"tuned": ConfigRecord(tuned._asdict())}), reply_to=message)
