"""Opens what a command runs on: a device by name or the first that fits, its profile, and a base's weights on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from fabric.core import DeviceInfo, devices, find_sycl
from fabric.devices.places import places
from fabric.devices.profiles import BACKENDS, Profile, profile_of
from fabric.errors import DeviceError
from fabric.models.recorder import Weights
from fabric.weights.gguf import GGUF


class Placed(Protocol):
    """Settings that say where and how a model is computed."""

    @property
    def device(self) -> str:
        """A name, or `auto`."""

    @property
    def threads(self) -> int:
        """Of the processor; 0: one per core."""

    @property
    def precision(self) -> str:
        """Of activations."""


S = TypeVar("S", bound=Placed)
T = TypeVar("T")
AUTO = "auto"
_OPEN = {
    "precision": "auto",
    "weights": "auto",
    "checkpointing": None,
    "micro_batch": None,
}  # settings that a profile may fill in


@dataclass(frozen=True)
class Opened(Generic[S, T]):
    """`settings` name the device and say what its profile does; `made` is what was made of them on it."""

    settings: S
    profile: Profile
    weights: Weights
    made: T
    taken: str | None
    """A sentence where the device was chosen here: which, and why not those before it."""


def named_devices() -> list[tuple[str, DeviceInfo]]:
    """Every device, by the name that --device takes."""
    found: list[tuple[str, DeviceInfo]] = []
    find_sycl(places.kernel_cache, places.oneapi)
    for info in devices():
        number = sum(other.backend == info.backend for _, other in found)
        found.append((f"{info.backend}:{number}" if number else info.backend, info))
    return found


def candidates(local: int = 0) -> list[tuple[str, DeviceInfo]]:
    """What --device auto tries, in order: accelerators that are none in name alone, then the processor. Of those of one
    kind the first is dealt out by `local`, the number of this process among those of its host."""
    real = [(name, info) for name, info in named_devices() if not info.software]
    found: list[tuple[str, DeviceInfo]] = []
    for backend in BACKENDS:
        kind = [one for one in real if one[1].backend == backend]
        at = local % len(kind) if kind else 0
        found += [*kind[at:], *kind[:at]]
    return found


def _dealt(name: str, local: int) -> str:
    """A device by name; of a kind without a number, the one that is dealt to this process."""
    if not local or name not in BACKENDS or name == "cpu":
        return name
    if name == "sycl":
        find_sycl(places.kernel_cache, places.oneapi)
    at = local % max(1, sum(info.backend == name for info in devices()))
    return f"{name}:{at}" if at else name


def with_profile(settings: S, profile: Profile) -> S:
    """The settings with what they leave open as the profile says."""
    left = {key: value for key, value in _OPEN.items() if getattr(settings, key, profile) == value}
    return replace(settings, **{key: profile.get(key, value) for key, value in left.items()})  # type: ignore[type-var]


@contextlib.contextmanager
def opened(
    settings: S,
    gguf: GGUF,
    make: Callable[[S, Weights], contextlib.AbstractContextManager[T]],
    profiled: bool = True,
    timed: bool = False,
    local: int = 0,
) -> Iterator[Opened[S, T]]:
    """Opens `settings.device` with `threads` and `isa`, and what is made of a base's weights on it. With `auto` the
    next device is tried where one does not open or what is made does not fit. `profiled`: the profile fills in what the
    settings leave open. `local`: the number of this process among those of its host; a kind of device without a number
    is dealt out by it. Raises DeviceError, and UsageError for a profile of the user that is none.
    """
    asked: Any = settings
    names = candidates(local) if asked.device == AUTO else [(_dealt(asked.device, local), None)]
    reasons: list[str] = []
    for name, info in names:
        with contextlib.ExitStack() as stack:
            try:
                found = _on(stack, replace(asked, device=name), gguf, make, profiled, timed)
            except DeviceError as error:
                if name != names[-1][0]:
                    reasons.append(f"not {name}: {str(error).rstrip('.')}")
                    continue
                raise DeviceError("; ".join([str(error), *reasons])) from error
            if info is not None:
                found = replace(found, taken="; ".join([f"on {name}, {info.name} ({info.isa})", *reasons]))
            yield found
            return


def _on(
    stack: contextlib.ExitStack, settings: Any, gguf: GGUF, make: Callable[..., Any], profiled: bool, timed: bool
) -> Opened[Any, Any]:
    profile = profile_of(settings.device)
    if profiled:
        settings = with_profile(settings, profile)
    isa = getattr(settings, "isa", None)
    try:
        opened = profile.open(settings.device, settings.threads, isa, timed)
    except DeviceError as error:
        here = dict(named_devices())
        if settings.device in here:
            raise
        listed = ", ".join(f"{name} ({info.name})" for name, info in here.items())
        raise DeviceError(f"{error}; the devices here are: {listed}") from error
    device = stack.enter_context(contextlib.closing(opened))
    size, there = sum(info.nbytes for info in gguf.tensors.values()), device.info.memory_bytes
    if device.info.own_memory and not device.info.in_place and there and size > there:
        raise DeviceError(
            f"{gguf.name} has {size / 2**30:.1f} GiB of weights and the device {there / 2**30:.1f} GiB of memory"
        )
    weights = stack.enter_context(contextlib.closing(Weights(gguf, device)))
    return Opened(settings, profile, weights, stack.enter_context(make(settings, weights)), None)
