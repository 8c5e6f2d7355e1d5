"""Compile the kernels of fused.py for cards that are not here; print a JSON list: kernel,
architecture, registers, spilled bytes. A process of its own: in that of the tests they may be for
the interpreter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medha_actors.model.cuda import fused

WIDTH = 4096
HEADS = 32
KV_HEADS = 8
HALF = 64
INTERMEDIATE = 14336
STORE = {
    "KV": 1 << 28,
    "PAGE": 1 << 16,
    "HEAD": 1 << 13,
    "TOKEN": 1 << 7,
    "HEADS": HEADS, "KV_HEADS": KV_HEADS, "HALF": HALF, "BLOCK": HALF, "AT_ONCE": 8,
    "PAGE_TOKENS": 64,
}  # fmt: skip
# kernel, types of its arguments in order ("T": what the model computes in), constants, warps
VARIANTS = [
    (fused.add_norm_kernel, "*T *T *T *T *T fp32",
     {"WIDTH": WIDTH, "BLOCK": WIDTH, "ADDS": True}, 8),
    (fused.turns_kernel, "*i32 *fp32 *fp32 i32 fp32", {"HALF": HALF, "BLOCK": HALF}, 1),
    (fused.store_heads_kernel, "*T *fp32 *i32 *T *T *T i32 fp32",
     {**STORE, "NORMS": True}, 2),
    (fused.store_heads_kernel, "*T *fp32 *i32 *T *T *T i32 fp32",
     {**STORE, "NORMS": False}, 2),
    (fused.gated_kernel, "*T *T", {"WIDTH": INTERMEDIATE, "BLOCK": 1024}, 4),
    (fused.embed_kernel, "*T *i32 *T i32 i32", {"WIDTH": WIDTH, "BLOCK": 1024}, 4),
]  # fmt: skip


def compile_one(kernel, types, constants, warps, architecture, dtype):
    names = [name for name in kernel.arg_names if name not in constants]
    given = types.replace("T", dtype).split()
    signature = dict(zip(names, given, strict=True)) | dict.fromkeys(
        constants, "constexpr"
    )
    places = {
        (kernel.arg_names.index(name),): value for name, value in constants.items()
    }
    attributes = {}
    for name, kind in signature.items():
        if kind.startswith("*"):
            attributes[(kernel.arg_names.index(name),)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, places, attributes)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


def resources(cubin):
    """Registers and spilled bytes of a thread."""
    tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump*"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    text = said.stdout + said.stderr
    return int(re.search(r"REG:(\d+)", text)[1]), int(
        re.search(r"STACK:(\d+)", text)[1]
    )


def main(architectures):
    found = []
    for architecture in architectures:
        for kernel, types, constants, warps in VARIANTS:
            made = compile_one(kernel, types, constants, warps, architecture, "bf16")
            registers, stack = resources(made.asm["cubin"])
            name = kernel.__name__
            wide = "v4.b32" in made.asm["ptx"] or "v2.b32" in made.asm["ptx"]
            found.append({"kernel": name, "sm": architecture, "registers": registers,
                          "stack": stack, "wide": wide})  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
