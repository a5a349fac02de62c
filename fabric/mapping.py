"""Files mapped for reading. One that is cut while it is mapped ends the process with a sentence and exit code 74, in
whichever thread notices: the system raises no exception instead.
"""

from __future__ import annotations

import mmap
from typing import BinaryIO

from fabric import notices
from fabric.core.guard import guard
from fabric.errors import OutputError
from fabric.printable import one_line
from fabric.system import MAPPED_GONE

_LONGEST_NAME = 200  # characters, at most 4 bytes each: a sentence has room for 1023


def mapped(file: BinaryIO, name: str) -> mmap.mmap:
    """Map a whole file that is not empty; `name` is what the sentence calls it."""
    found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    sentence = f"{notices.speaker}: {one_line(name, _LONGEST_NAME)} {MAPPED_GONE}\n"
    guard(found, sentence, OutputError.exit_code)
    return found
