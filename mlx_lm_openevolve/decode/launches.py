"""This folder's own kernels, NAME.metal beside this file, as launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from .. import backends
from ..backends import Run
from ..kernels.kernel import Launch
from ..kernels.spec import LaunchSpec

__all__ = ["TYPES", "OwnKernel", "backend"]

TYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}


def backend() -> str:
    """Whose kernels serve here, "" on the CPU."""
    if mx.default_device() != mx.gpu:
        return ""
    return "metal" if mx.metal.is_available() else "cuda"


class OwnKernel(NamedTuple):
    """NAME.metal beside this file: its inputs, row-contiguous, its outputs' shapes, and which of
    them are words of 32 bits."""

    name: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[int, ...]]
    words: tuple[str, ...] = ()

    def on(
        self,
        backend: str,
        dtype: mx.Dtype,
        constants: Mapping[str, float],
        numbers: Mapping[str, int],
        grid: tuple[int, int],
        threads: int,
        before: Sequence[str] = (),
    ) -> Run:
        """It as a launch of a grid of threads, `threads` of them in a threadgroup. before: lines
        that stand before its text."""
        text = Path(__file__).with_name(f"{self.name}.metal").read_text("ascii")
        lines = [f"constexpr float {key} = {float(value)!r}f;" for key, value in constants.items()]
        spec = LaunchSpec(
            file=f"{self.name}.metal",
            source="\n".join([*lines, *before, text]),
            header="",
            language="metal",
            inputs=self.inputs,
            outputs=(),
            template=(),
            grid=(),
            threadgroup=(),
            math_mode="safe",
            when=None,
        )
        kind = TYPES[dtype]
        kinds = dict.fromkeys(self.outputs, kind) | dict.fromkeys(self.words, "uint32")
        outputs = tuple((name, shape, kinds[name]) for name, shape in self.outputs.items())
        launch = Launch(spec, (("T", kind), *numbers.items()), (*grid, 1), (threads, 1, 1), outputs)
        made: Run = backends.get(backend).single(launch, self.name, list(self.inputs))
        return made
