"""Compiles the attention kernels for GPUs that are not here, and prints as JSON what the assembler
says of them. A program of its own: triton is either interpreted or compiled, for a whole process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medha_actors.model.cuda import attention_kernels
from medha_actors.model.cuda.attention import Shape, shapes_for

KINDS = ("wide", "middle", "narrow")
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TENSORS = {
    "q": "element", "keys": "element", "values": "element", "out": "element", "lse": "fp32",
    "partial_out": "fp32", "partial_lse": "fp32", "work": "i32", "sequences": "i32",
    "table_starts": "i32", "tables": "i32", "merges": "i32",
}  # fmt: skip
ALIGNED = (
    "stride_q_row",
    "stride_q_head",
    "stride_page",
    "stride_head",
    "stride_token",
)


def source(kernel, dtype, constants):
    """With all addresses and strides divisible by 16, but for views of index arrays."""
    signature = {}
    attributes = {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = TENSORS.get(name)
        if kind is None:
            signature[name] = "fp32" if name == "scale" else "i32"
            aligned = name in (*ALIGNED, "stride_out")
        else:
            signature[name] = "*" + (NAMES[dtype] if kind == "element" else kind)
            aligned = kind != "i32"
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def attend(capability, dtype, head_dim, shape, kind, page_tokens=64):
    constants = {
        "SHARE": 4, "KV_HEADS": 8, "HEAD_DIM": head_dim, "HEAD": 1 << (head_dim - 1).bit_length(),
        "PAGE": page_tokens, "ROWS": shape.rows, "KEYS": shape.keys, "LSE": True, "WIDEN": False,
        "KIND": kind,
    }  # fmt: skip
    return compiled(
        capability, source(attention_kernels.attend, dtype, constants), shape
    )


def merge(capability, dtype, head_dim):
    constants = {
        "HEADS": 32,
        "HEAD_DIM": head_dim,
        "HEAD": head_dim,
        "PIECES": 8,
        "LSE": True,
    }
    shape = Shape(0, 0, 2, 1)
    return compiled(
        capability, source(attention_kernels.merge, dtype, constants), shape
    )


def compiled(capability, what, shape):
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    binary = triton.compile(what, target=target, options=options)
    return {**usage(binary), "shared": binary.metadata.shared}


def usage(binary):
    """Registers, bytes spilled, and how many of which matrix instructions."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        told = call(tools / "cuobjdump", "--dump-resource-usage", file.name)
        sass = call(tools / "nvdisasm", file.name) if os.environ.get("SASS") else ""
    found = {
        "registers": int(re.findall(r"REG:(\d+)", told)[-1]),
        "spilled": int(re.findall(r"STACK:(\d+)", told)[-1]),
        "wgmma": binary.asm["ptx"].count("wgmma.mma_async"),
        "asynchronous loads": len(re.findall(r"cp\.async\.c[ag]", binary.asm["ptx"])),
    }
    if sass:
        found["HGMMA"] = len(re.findall(r"\bHGMMA", sass))
        found["HMMA"] = len(re.findall(r"\bHMMA", sass))
        found["LDL"] = len(re.findall(r"\b(LDL|STL)", sass))
    return found


def call(*arguments):
    return subprocess.run(
        [*map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout


def main(asked):
    """`asked`: [capability, dtype, head_dim, kernel, page_tokens] each; kernel: wide, middle,
    narrow or merge; instead of it a shape."""
    found = []
    for capability, name, head_dim, kernel, page_tokens in asked:
        dtype = getattr(torch, name)
        if kernel == "merge":
            found.append(merge(capability, dtype, head_dim))
            continue
        if isinstance(kernel, list):
            shape = Shape(*kernel)
            kind = 0 if shape.rows > 16 else 2
        else:
            kind = KINDS.index(kernel)
            shape = shapes_for(dtype, head_dim, 4, roomy=capability in (90, 100))[kind]
        found.append(attend(capability, dtype, head_dim, shape, kind, page_tokens))
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
