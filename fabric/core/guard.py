"""What happens where a mapped file is cut while it is read."""

from __future__ import annotations

import mmap
import weakref

from fabric.core._native import ffi, lib


def guard(mapped: mmap.mmap, sentence: str, code: int) -> None:
    """From now on, reading what is no longer there writes the sentence to stderr and ends the process with the code."""
    start = ffi.cast("void *", ffi.from_buffer(mapped))
    if lib.fb_guard(start, len(mapped), sentence.encode(), code) != lib.FB_OK:
        raise MemoryError
    weakref.finalize(mapped, lib.fb_unguard, start).atexit = False
