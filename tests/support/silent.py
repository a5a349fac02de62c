"""A run that nobody watches."""

from __future__ import annotations

from typing import Any


class Silent:
    """A TrainUI that says nothing and never stops."""

    def start(self, info: dict[str, Any]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def progress(self, fraction: float) -> None:
        """Nothing."""

    def step(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def interrupted(self) -> bool:
        """Never."""
        return False
