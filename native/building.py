"""The build backend that pyproject.toml names: setuptools, a shader compiler where the Vulkan kernels lack one, and
source packages whose bits depend on their contents alone."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import spirv
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

EPOCH = 315532800  # the first day of 1980, before which a zip file has no dates


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What is to be installed before a build."""
    return spirv.requires()


get_requires_for_build_editable = get_requires_for_build_sdist = get_requires_for_build_wheel


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Makes a source package; returns its name."""
    name = build_meta.build_sdist(sdist_directory, config_settings)
    settle(Path(sdist_directory) / name)
    return name


def settle(archive: Path) -> None:
    """Writes an archive anew without what differs from build to build: order, times, owners, the umask."""
    when = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    out = archive.with_suffix(".settled")
    with (
        tarfile.open(archive) as old,
        out.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=when) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda m: m.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = when, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() or member.mode & 0o100 else 0o644, {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    out.replace(archive)


__all__ = build_meta.__all__
