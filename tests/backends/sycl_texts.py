"""All kernels in one SYCL text, their constants built in, given to the compiler."""

from __future__ import annotations

import ctypes
import sys

from tests.support.paths import REPOSITORY

sys.path[:0] = [str(REPOSITORY / "native")]

from texts import texts  # noqa: E402

UNITS = ("8 16 16", "8 8 16", "16 16 16")  # M N K of joint matrices: Xe-HPC and Xe2; Xe-HPG; AMX, the largest within 16

FOR_UNITS = ("matrix_pack", "matrix_peak", "matrix_product")


def sizes_of(name: str) -> dict[int, int]:
    """Constants of a kernel by number; 2 says that every operand is there."""
    sizes = {0: 128, 2: 0xFFFF, 3: 128 if "attention" in name else 1, 5: 64, 6: 64, 7: 4, 8: 4, 9: 1}
    if name == "product_few":
        sizes |= {0: 64, 3: 8, 5: 8, 6: 4}
    if name == "matrix_product":
        sizes |= {7: 32, 8: 32}
    return sizes


def text_of(kernels: dict[str, tuple[str, dict[int, int]]]) -> str:
    """By function name: the kernel, and its constants."""
    text = '#include "sycl.prelude"\n#include "common.prelude"\n'
    for function, (name, sizes) in kernels.items():
        for n in range(10):
            text += f"#undef SPEC_{n}\n#define SPEC_{n} {sizes.get(n, n)}u\n"
        text += "#undef RUN\n#undef PARTS\n#undef TEAMS\n"
        text += f"#define RUN {function}\n#define TEAMS {'OF_UNITS' if name in FOR_UNITS else ''}\n"
        text += f'namespace k_{function} {{\n#include "{name}.kernel"\n}}\n'
    return text


def compile_all(library: str) -> list[str]:
    """What the compiler says of the portable kernels, and of those for joint matrices of each size, asked through the
    shim. Of a kernel for units that this device lacks the compiler makes no machine code, which the shim then says."""
    shim, device, first = ctypes.CDLL(library), ctypes.c_void_p(), ctypes.c_int()
    shim.shim_error.restype = ctypes.c_char_p
    assert shim.shim_open(0, ctypes.byref(device)) == 0, shim.shim_error()
    names = [path.removesuffix(".kernel") for path in texts() if path.endswith(".kernel")]
    jobs = [("", {f"run_{name}": (name, sizes_of(name)) for name in names if name not in FOR_UNITS})]
    for units in UNITS:
        ahead = "".join(f"#define UNIT_{side} {size}u\n" for side, size in zip("MNK", units.split(), strict=True))
        around = ("attention_dq", *FOR_UNITS, "attention_dkv")  # whose macros must not meet
        each = {f"run_{name}": (name, sizes_of(name)) for name in around}
        each |= {f"run_op_{op}": ("matrix_product", sizes_of("matrix_product") | {3: op}) for op in (0, 2)}
        jobs.append((ahead, each))
    files = [part for name, content in texts().items() for part in (name.encode(), content)]
    said = []
    for ahead, kernels in jobs:
        functions = [name.encode() for name in kernels]
        code = shim.shim_build(
            device, (ahead + text_of(kernels)).encode(), (ctypes.c_char_p * len(files))(*files), len(files) // 2,
            (ctypes.c_char_p * len(functions))(*functions), len(functions), ctypes.byref(first),
        )  # fmt: skip
        told = shim.shim_error().decode() if code else ""
        said.append("" if ahead and told.startswith("kernel 'run_matrix_") else told)
    shim.shim_close(device)
    return said
