"""Places on disk that the command line chooses for everything below it."""

from __future__ import annotations

from pathlib import Path

# Where drivers' built kernels are kept from run to run: the beginning of a file name. None: nowhere.
kernel_cache: Path | None = None

# A CUDA toolkit, whose run-time compiler is used before that of the package nvidia-cuda-nvrtc. None: none is named.
cuda_toolkit: Path | None = None

# A oneAPI compiler's folder, whose SYCL is used before that of the package intel-sycl-rt. None: none is named.
oneapi: Path | None = None

# The folder of the user's device profiles. None: there are none.
profiles: Path | None = None
