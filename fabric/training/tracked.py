"""A run as trackers know it: its name, its settings, what it began on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric.runs.directory import place_of
from fabric.settings import paths
from fabric.tracking.trackers import Tracked
from fabric.training.settings import TrainSettings


def tracked(settings: TrainSettings, directory: Path, step: int, about: Mapping[str, Any]) -> Tracked:
    """No file of the user's is named to trackers, which may be far away."""
    place = directory.resolve()
    files = {name for which in ("in", "out") for name in paths(settings, which)}
    told = {n: value for n, value in settings.to_json().items() if n not in files and value is not None}
    told |= {name: value for name, value in about.items() if isinstance(value, (str, int, float))}
    key = hashlib.sha256(f"{place}\0{place_of(directory)}".encode(errors="surrogateescape")).hexdigest()[:16]
    return Tracked(place.name, key, directory, step, {**told, "device": about["device"]["name"]})
