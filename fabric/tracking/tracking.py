"""Trackers beside a run: they get its metrics in a thread of their own, where they may wait or fail. A run goes on
without them."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fabric.tracking.trackers import Tracked, Tracker, begin, why

Say = Callable[[str], None]
Item = tuple[int, dict[str, float]]

_MOST_WAITING = 100_000  # steps that a tracker has not taken yet
_END_S = 30.0  # until all is sent, at the end of a run
_STOP_S = 5.0  # the same of a run that was stopped


class Tracking:
    """One tracker and its thread."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker = name, tracker
        self.failure: str | None = None
        self.said = False
        self.done = True
        self.items: queue.Queue[Item | None] = queue.Queue(_MOST_WAITING)
        self.thread = threading.Thread(target=self._work, name=f"fabric-{name}", daemon=True)
        self.thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hands over the numbers of a step."""
        try:
            if self.failure is None:
                self.items.put_nowait((step, values))
        except queue.Full:
            self.failure = f"it has not taken {_MOST_WAITING:,} steps"

    def end(self, done: bool) -> None:
        """No more will come."""
        self.done = done
        with contextlib.suppress(queue.Full):
            self.items.put_nowait(None)

    def _work(self) -> None:
        try:
            while (item := self.items.get()) is not None:
                self.tracker.log(*item)
            with contextlib.redirect_stdout(sys.stderr):  # results go to stdout, and nothing else
                self.tracker.close(self.done)
        except Exception as error:
            self.failure = why(error)


class Trackers:
    """All trackers of a run."""

    def __init__(self, tracked: Sequence[Tracking], say: Say) -> None:
        self.tracked, self.say = tracked, say

    def log(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record of metrics."""
        values = {
            name: float(value) for name, value in record.items()
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }  # fmt: skip
        for one in self.tracked:
            one.log(int(record["step"]), values)
            self._tell(one)

    def end(self, done: bool) -> None:
        """Waits for what is not sent yet, but not for long."""
        for one in self.tracked:
            one.end(done)
        for one in self.tracked:
            one.thread.join(_END_S if done else _STOP_S)
            if one.thread.is_alive() and one.failure is None:
                one.failure = "it does not come to its end"
            self._tell(one)

    def _tell(self, one: Tracking) -> None:
        if one.failure is not None and not one.said:
            one.said = True
            self.say(f"{one.name} does not track this run any more: {one.failure}; the run directory has all metrics")


@contextlib.contextmanager
def tracking(names: Sequence[str], run: Tracked, say: Say) -> Iterator[Trackers]:
    """The trackers of those names, until the block ends. DeviceError where one cannot begin."""
    opened: list[Tracking] = []
    trackers, done = Trackers(opened, say), False
    try:
        for name in names:
            with contextlib.redirect_stdout(sys.stderr):
                tracker = begin(name, run)
            opened.append(Tracking(name, tracker))
            say(f"{name}: {tracker.place()}")
        yield trackers
        done = True
    finally:
        trackers.end(done)
