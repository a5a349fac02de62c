"""Torch with one thread: on matrices this small two of them mostly wait for each other."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(1)
