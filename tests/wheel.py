"""Whether an installed fabric works, with nothing but what it brings: trains, resumes and merges a small random model.

python tests/wheel.py     in any environment that has fabric; the recipe of wheels runs it for each
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = Path(__file__).resolve().parent / "parity" / "golden" / "model.gguf"


def fabric(*arguments: object, cwd: Path) -> None:
    """Runs one command, which must end well."""
    subprocess.run([sys.executable, "-m", "fabric", *map(str, arguments)], cwd=cwd, check=True)


def main() -> None:
    """Ends with an exception where anything fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"prompt": f"Is {i} odd?", "completion": " Yes." if i % 2 else " No."} for i in range(8)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        fabric("devices", cwd=folder)
        fabric(
            "train", "rows.jsonl", "-m", MODEL, "-o", "adapter.gguf", "--steps", 4, "--ctx", 32, "--batch", 2,
            "--rank", 2, "--lr", 1e-3, "--run-dir", "run", "--device", "cpu", cwd=folder,
        )  # fmt: skip
        fabric("merge", "-m", MODEL, "-a", "adapter.gguf", "-o", "merged.gguf", cwd=folder)
        for made in ("adapter.gguf", "merged.gguf"):
            assert (folder / made).read_bytes()[:4] == b"GGUF", made


if __name__ == "__main__":
    main()
