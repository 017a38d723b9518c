"""Flags of the compiling passes."""

from __future__ import annotations

from .toolchain import Toolchain

__all__ = ["MATH", "NO_WARNINGS", "compile_flags"]

LANGUAGE = [
    *("-x", "c++", "-std=c++14", "-nostdinc", "-fno-exceptions", "-fno-rtti", "-fwrapv"),
    *("-fno-strict-aliasing", "-fno-finite-loops", "-fno-stack-protector", "-fno-math-errno"),
    *("-fno-delete-null-pointer-checks", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"),
    *("-fno-sanitize=all", "-cl-single-precision-constant", "-fno-color-diagnostics"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none", "-ferror-limit=40"),
    *("-fdiagnostics-format=clang", "-fno-caret-diagnostics", "-fno-crash-diagnostics"),
    "-flax-vector-conversions=none",
    # Each wait is known by its path of calls (runtime/schedule.cpp): calls stay calls, frames are
    # linked, and no call is copied.
    *(
        "-fno-omit-frame-pointer",
        "-fno-optimize-sibling-calls",
        "-mllvm",
        "-disable-tail-duplicate",
    ),
    *("-mllvm", "-disable-early-taildup", "-mllvm", "-tail-dup-placement=0"),
]
# Of a compiling pass: what clang makes an error by itself stays one, but vectors may be shifted by
# vectors of other elements.
NO_WARNINGS = ["-w", "-Wno-vec-elem-size"]
INSTRUMENT = [
    *("-O1", "-fno-vectorize", "-fno-slp-vectorize", "-gline-tables-only", "-gdwarf-4"),
    "-fsanitize=thread,bounds,local-bounds,return,alignment",
    "-fsanitize-recover=all",
    "-fno-sanitize-recover=alignment",  # else two loads of one value stay two: they are counted
    "-ftrivial-auto-var-init=pattern",
    *("-mllvm", "-tsan-instrument-atomics=0", "-mllvm", "-tsan-instrument-func-entry-exit=0"),
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
    # An access stays where the source has it: not moved behind a guard, not merged with another.
    *("-mllvm", "-instcombine-code-sinking=0", "-mllvm", "-simplifycfg-sink-common=0"),
    *("-mllvm", "-simplifycfg-merge-cond-stores=0"),
]
PLAIN = ["-O2", "-gline-tables-only", "-gdwarf-4"]
MATH = {
    "safe": ["-ffp-contract=on"],
    "relaxed": [
        *("-ffp-contract=fast", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
    ],
    "fast": ["-ffast-math", "-fno-finite-math-only"],
}


def compile_flags(tools: Toolchain, instrument: bool, count: bool, math_mode: str) -> list[str]:
    """Flags to compile a translated kernel, or the shim to go with it.

    instrument: announce every access to the runtime. count: mark the basic blocks too.
    """
    aux = "x86_64-linux-gnu" if tools.target.startswith("x86_64") else "aarch64-linux-gnu"
    return [
        *LANGUAGE,
        *tools.target_flags,
        # The mode in which classes copy between address spaces; it asks for a host's triple.
        *("-Xclang", "-fsycl-is-device", "-Xclang", "-aux-triple", "-Xclang", aux),
        *(INSTRUMENT if instrument else PLAIN),
        *(["-fsanitize-coverage=bb,no-prune,trace-pc-guard"] if count else []),
        *MATH[math_mode],
    ]
