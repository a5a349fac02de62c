"""Handles of the core: one is freed when its owner closes it, and where the owner is forgotten, when Python notices.

On a device the core serves one thread at a time, but Python may notice in any thread, also while the device computes.
So whatever works with a device takes its turn, and a handle is freed between two turns.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from fabric.core._native import ffi, lib
from fabric.errors import DeviceError, FabricError


class Cancelled(FabricError):
    """A run stopped because its progress was told to cancel."""


def error() -> str:
    """The sentence of the last failure."""
    return str(ffi.string(lib.fb_error()).decode("utf-8", "replace"))


def check(code: int) -> None:
    """Raises what a code other than FB_OK means."""
    if code == lib.FB_OK:
        return
    if code == lib.FB_E_CANCELLED:
        raise Cancelled(error())
    if code in (lib.FB_E_MEMORY, lib.FB_E_DEVICE, lib.FB_E_LIMIT):
        raise DeviceError(error())
    raise FabricError(error())


def there(pointer: Any) -> Any:
    """The pointer; DeviceError where it is NULL."""
    if pointer == ffi.NULL:
        raise DeviceError(error())
    return pointer


class Turns:
    """The turns of a device: `with turns:` is one. Handles of the device are freed between them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._to_free: deque[tuple[Callable[[Any], None], Any, object]] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._free()

    def owned(self, pointer: Any, free: Callable[[Any], None], *needed: object) -> Any:
        """The pointer as a handle that `free` gets once; it keeps alive what is `needed` until then. DeviceError where
        it is NULL."""

        def forget(pointer: Any, needed: object = needed) -> None:
            self._to_free.append((free, pointer, needed))
            self._free()

        return ffi.gc(there(pointer), forget)

    def _free(self) -> None:
        while self._to_free and self._lock.acquire(blocking=False):
            try:
                while self._to_free:
                    free, pointer, _needed = self._to_free.popleft()
                    free(pointer)
            finally:
                self._lock.release()


def closed(handle: Any) -> Any:
    """Frees a handle, if it is still one, and returns what its owner has from then on: NULL."""
    if handle != ffi.NULL:
        ffi.release(handle)
    return ffi.NULL
