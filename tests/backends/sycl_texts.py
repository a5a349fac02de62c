"""All portable kernels in one SYCL text, their constants built in, given to the compiler."""

from __future__ import annotations

import ctypes
import sys

from tests.support.paths import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "native")]

from texts import texts  # noqa: E402


def compile_all(library: str) -> int | str:
    """0, or what the compiler says, which is asked through the shim."""
    shim, device, first = ctypes.CDLL(library), ctypes.c_void_p(), ctypes.c_int()
    shim.shim_error.restype = ctypes.c_char_p
    assert shim.shim_open(0, ctypes.byref(device)) == 0, shim.shim_error()
    text = '#include "sycl.prelude"\n#include "common.prelude"\n'
    names = [name.removesuffix(".kernel") for name in texts() if name.endswith(".kernel")]
    for name in names:
        sizes = {0: 128, 3: 128 if "attention" in name else 1, 5: 64, 6: 64, 7: 4, 8: 4, 9: 1}
        if name == "product_few":
            sizes |= {0: 64, 3: 8, 5: 8, 6: 4}
        for n in range(10):
            text += f"#undef SPEC_{n}\n#define SPEC_{n} {sizes.get(n, 0xFFFF if n == 2 else n)}u\n"
        text += (
            f'#undef RUN\n#undef PARTS\n#define RUN run_{name}\nnamespace k_{name} {{\n#include "{name}.kernel"\n}}\n'
        )
    files = [part for name, content in texts().items() for part in (name.encode(), content)]
    functions = [f"run_{name}".encode() for name in names]
    code = shim.shim_build(
        device, text.encode(), (ctypes.c_char_p * len(files))(*files), len(files) // 2,
        (ctypes.c_char_p * len(functions))(*functions), len(functions), ctypes.byref(first),
    )  # fmt: skip
    said = shim.shim_error().decode()
    shim.shim_close(device)
    return said if code else 0
