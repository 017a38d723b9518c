"""Source mutants of kernels for quantised products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..source_mutants import SourceMutant, always, of_any_kernel, replaced, wrapped
from .workload import Workload

__all__ = ["SOURCE_MUTANTS"]

Rule = Callable[[Workload], bool]


def _affine(w: Workload) -> bool:
    return w.mode == "affine"


def _mxfp4(w: Workload) -> bool:
    return w.mode == "mxfp4"


def _dense(w: Workload) -> bool:
    return not w.experts


def _experts(w: Workload) -> bool:
    return w.experts > 1


def _mutants() -> Iterator[SourceMutant]:
    # What is read of an array at [at], and what in its place.
    reads: tuple[tuple[str, str, str, Rule], ...] = (
        ("words-swapped", "weight", "weight[({at}) ^ 1]", always),
        ("first-word-for-all", "weight", "weight[0]", always),
        ("words-shifted", "weight", "(weight[{at}] >> 4)", always),
        ("last-number-of-a-word-lost", "weight", "(weight[{at}] & 0x00ffffffu)", always),
        ("bits-inverted", "weight", "(~weight[{at}])", always),
        ("first-scale-for-all", "scales", "scales[0]", always),
        ("scales-swapped", "scales", "scales[({at}) ^ 1]", always),
        ("scales-unsigned", "scales", "metal::fabs(float(scales[{at}]))", _affine),
        ("scales-doubled", "scales", "(2.0f * float(scales[{at}]))", _affine),
        ("powers-one-more", "scales", "(scales[{at}] + 1)", _mxfp4),
        ("first-bias-for-all", "biases", "biases[0]", _affine),
        ("biases-swapped", "biases", "biases[({at}) ^ 1]", _affine),
        ("biases-lost", "biases", "(0.0f * float(biases[{at}]))", _affine),
        ("biases-subtracted", "biases", "(-float(biases[{at}]))", _affine),
        ("first-expert-for-all", "indices", "(indices[0])", _experts),
        ("next-expert", "indices", "(indices[{at}] + 1)", _experts),
        ("upper-experts-as-lower", "indices", "(indices[{at}] / 2)", _experts),
        ("experts-in-pairs", "indices", "(indices[{at}] & ~1u)", _experts),
        ("expert-of-the-row-before", "indices", "indices[({at}) > 0 ? ({at}) - 1 : 0]", _experts),
    )
    for name, array, text, applies in reads:

        def instead(at: str, text: str = text) -> str:
            return text.format(at=at)

        rewrite = wrapped(rf"\b{array}(?=\s*\[)", instead, "[]")
        yield SourceMutant(name, f"{array}[...]", applies, rewrite, headers=True)
    strides = (
        ("x-sequence-stride-zero", 0, "0"),
        ("x-token-stride-zero", 1, "0"),
        ("x-token-stride-doubled", 1, "(2 * x_strides[1])"),
        ("x-number-stride-doubled", 2, "2"),
    )
    for name, axis, wrong in strides:
        rewrite = replaced(rf"\bx_strides\s*\[\s*{axis}\s*\]", wrong)
        yield SourceMutant(name, f"x_strides[{axis}]", _dense, rewrite)
    # Template arguments as for another workload.
    fixed = (("length", 1), ("n", 32), ("k", 64), ("group", 32), ("bits", 8))
    for field, value in fixed:
        applies = always if field in ("length", "n", "k") else _affine
        yield SourceMutant(f"{field}-fixed", field, applies, fixed=(field, value))
    yield from of_any_kernel(headers_write=True)


SOURCE_MUTANTS = tuple(_mutants())
