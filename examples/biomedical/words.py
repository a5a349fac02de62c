"""How far words alone go: naive Bayes over the words and word pairs of each row, nine folds over all rows.

python examples/biomedical/words.py ../shared/data/biomedical_qa
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from collections import Counter
from pathlib import Path

FOLDS = 9
SMOOTHING = 0.3


def words(text: str) -> set[str]:
    found = re.findall(r"\w+", text.lower())
    return set(found) | {f"{a} {b}" for a, b in itertools.pairwise(found)}


def right(texts: list[set[str]], labels: list[str]) -> int:
    """Rows whose label is the likeliest by the other folds; words that only one row there has are passed over."""
    names, count = sorted(set(labels)), 0
    order = random.Random(0).sample(range(len(texts)), len(texts))
    for fold in range(FOLDS):
        held = set(order[fold::FOLDS])
        rows, seen = Counter(), {name: Counter() for name in names}
        for i in set(order) - held:
            rows[labels[i]] += 1
            seen[labels[i]].update(texts[i])
        for i in held:
            known = [word for word in texts[i] if sum(seen[name][word] for name in names) > 1]
            scores = {
                name: sum(math.log((seen[name][w] + SMOOTHING) / (rows[name] + 2 * SMOOTHING)) for w in known)
                for name in names
            }
            count += max(names, key=scores.__getitem__) == labels[i]
    return count


def main(folder: Path) -> None:
    lines = [line for name in ("train", "validation") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    labels = [row["label"] for row in rows]
    for name, shown in (("question", "{question}"), ("question and finding", "{question} {rationale_src}"),
                        ("finding", "{rationale_src}")):  # fmt: skip
        count = right([words(shown.format(**row)) for row in rows], labels)
        print(f"{name:22}{100 * count / len(rows):3.0f} % ({count} of {len(rows)})")


main(Path(sys.argv[1]))
