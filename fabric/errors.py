"""The errors that everything below `cli/` raises. Each carries the exit code that `cli/` ends with.

A message is one sentence: what is wrong, where, and what to do.
"""

from __future__ import annotations


class FabricError(Exception):
    """Base of all; on its own, an internal error."""

    exit_code = 70


class UsageError(FabricError):
    """Flags or settings that make no sense together."""

    exit_code = 2


class DataError(FabricError):
    """Bytes that are not what they claim: a cut GGUF, malformed JSONL, an adapter of another base."""

    exit_code = 65


class MissingInputError(FabricError):
    """A file that is not there or cannot be opened for reading."""

    exit_code = 66


class DeviceError(FabricError):
    """A device that is missing, lost, or too small for the job."""

    exit_code = 69


class OutputError(FabricError):
    """Reading or writing failed half-way: a full disk, a directory that cannot be written."""

    exit_code = 74


class StoppedError(FabricError):
    """Stopped on request (SIGTERM); `fabric resume` continues."""

    exit_code = 75


class DivergedError(FabricError):
    """The loss became NaN or exploded."""

    exit_code = 76


class InterruptedRunError(FabricError):
    """Stopped by Ctrl-C; `fabric resume` continues."""

    exit_code = 130
