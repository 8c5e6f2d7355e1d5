"""Compile the sampler's kernels for cards that are not here; print a JSON list: kernel,
architecture, registers, bytes of stack. A process of its own: in that of the tests they may be for
the interpreter."""

from __future__ import annotations

import json
import sys

import triton
from compile_fused import resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from medha_actors.model.cuda import choice_kernels, search_kernels

TYPES = {
    "logits": "*fp32", "asks": "*fp64", "penalties": "*fp64",
    "keys": "*i64", "sums": "*i64", "slots": "*i64", "cells": "*i64", "places": "*i64",
    "token_ids": "*i32", "bests": "*i32", "bars": "*i32", "counters": "*i32", "table": "*i32",
    "candidates": "*i32", "found": "*i32", "settled": "*i32", "counts": "*i32", "scores": "*i32",
}  # fmt: skip
# as for a vocabulary of 128K: kernel, constants, warps
VARIANTS = [
    (choice_kernels.look_over, {"CHUNK": 4096, "PART": 128, "CUT": True}, 8),
    (choice_kernels.set_bars, {"PARTS": 1024}, 4),
    (choice_kernels.weigh, {"CHUNK": 4096, "CHUNKS": 32, "MANY": 4096, "CUT": True}, 8),
    (choice_kernels.pick,
     {"CHUNK": 4096, "CHUNKS": 32, "MANY": 4096, "DRAWN": True, "CUT": True}, 8),
    (choice_kernels.pick,
     {"CHUNK": 4096, "CHUNKS": 32, "MANY": 4096, "DRAWN": False, "CUT": False}, 8),
    (search_kernels.search_all, {"CHUNKS": 32, "BLOCK": 4096}, 16),
    (search_kernels.take_penalties, {"CHUNK": 4096}, 8),
    (search_kernels.add_counts, {"BLOCK": 1024}, 4),
    (search_kernels.best_of_chunks, {"CHUNK": 4096, "COUNT": 8}, 8),
    (search_kernels.spread_of_chunks, {"CHUNK": 4096, "CHUNKS": 32, "COUNT": 8}, 8),
    (search_kernels.score_rows, {"CHUNKS": 32, "COUNT": 32}, 4),
]  # fmt: skip


def compile_one(kernel, constants, warps, architecture):
    signature = {name: TYPES.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {
        (kernel.arg_names.index(name),): value for name, value in constants.items()
    }
    source = ASTSource(kernel, signature, places)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


def main(architectures):
    found = []
    for architecture in architectures:
        for kernel, constants, warps in VARIANTS:
            made = compile_one(kernel, constants, warps, architecture)
            registers, stack = resources(made.asm["cubin"])
            found.append(
                {
                    "kernel": kernel.__name__,
                    "sm": architecture,
                    "registers": registers,
                    "stack": stack,
                    "threads": 32 * warps,
                }
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
