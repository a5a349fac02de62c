"""How the tests of prepare call it: rows to a file, the function, records back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from fabric.data.prepare import PrepareReport, prepare
from fabric.data.settings import PrepareSettings


def run(settings: PrepareSettings) -> tuple[list[dict[str, Any]], PrepareReport]:
    """Records written, and the report, whose counts must add up."""
    out = io.BytesIO()
    report = prepare(settings, out)
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    lost = report.bad + report.duplicates + report.too_short + report.too_long + report.unbalanced
    assert report.read == report.written + sum(report.held_out.values()) + lost
    assert report.written == len(records)
    return records, report


def prepared(path: Path, content: str | bytes | list[Any], **settings: Any) -> list[dict[str, Any]]:
    """Records of one file with that content; a list is written as JSON lines."""
    write(path, content)
    return run(PrepareSettings(inputs=(str(path),), **settings))[0]


def write(path: Path, content: str | bytes | list[Any]) -> None:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def chat(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], **more}
