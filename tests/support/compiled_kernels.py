"""Compiles every kernel for an H100 (sm_90), which needs no GPU: `python -m tests.support.compiled_kernels`.

Triton's interpreter accepts kernels that its compiler refuses. Prints kernels and the sizes of their binaries as JSON.
"""

from __future__ import annotations

import json
import math
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from harness.lm.kernels import divergence_kernels, selected_kernels

IDS, NUMBERS = ("ids", "held"), ("width", "first", "count", "held_count", "groups")


def compiled(kernel: Any, dtype: str, **constants: Any) -> int:
    """Return the bytes of a kernel's binary for products of a dtype; gradients are bfloat16."""
    types = dict.fromkeys(kernel.arg_names, f"*{dtype}")
    types |= dict.fromkeys(IDS, "*i64") | dict.fromkeys(NUMBERS, "i32") | {"out": "*bf16"}
    known = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in known else types[name] for name in kernel.arg_names}
    return len(compile(ASTSource(kernel, signature, constexprs=known), target=GPUTarget("cuda", 90, 32)).asm["cubin"])


def main() -> None:
    """Compile and print."""
    own, theirs = (
        {"SCALE": 1.5, "TEMPERATURE": 0.7},
        {"THEIR_SCALE": 1.0, "THEIR_SOFTCAP": 0.0, "THEIR_TEMPERATURE": 1.0},
    )
    sizes: dict[str, int] = {}
    for softcap, held, group in ((0.0, 0, 0), (30.0, 32, 0), (0.0, 0, 64)):
        constants = {**own, "SOFTCAP": softcap, "COLUMNS": 64, "HELD": held, "GROUP": group, "BLOCK": 1024}
        for kernel in (selected_kernels._scan, selected_kernels._gradient):
            sizes[f"selected {kernel.__name__} {softcap} {held} {group}"] = compiled(kernel, "fp32", **constants)
    for beta in (0.0, 0.5, 1.0):
        logs = {"LOG_BETA": math.log(beta or 1), "LOG_OTHER": math.log(1 - beta or 1)}
        constants = {**own, **theirs, **logs, "SOFTCAP": 30.0, "BETA": beta, "LOWEST": -3e38, "BLOCK": 1024}
        for kernel in (divergence_kernels._losses, divergence_kernels._gradient):
            sizes[f"divergence {kernel.__name__} {beta}"] = compiled(kernel, "fp32", **constants)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
