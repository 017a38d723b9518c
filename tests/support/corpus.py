"""Reads tests/metalhost/corpus: Metal snippets with what must be said about each.

Three files: `valid` runs and computes, `invalid` is refused by Apple's compiler, `bugs` compiles
there and misbehaves. metalhost and, on a Mac, the real compiler are held to the same snippets.

A snippet is Metal text behind a header of comments:

    //// NAME                              begins a snippet, and is not of it
    // One sentence that says what the snippet shows.
    // in: NAME DTYPE SHAPE[VIEW] = VALUES    an input; VIEW keeps a slice of it, as in 8x16[:,0:4]
    // out: NAME DTYPE SHAPE = VALUES         an output, with the values expected of it
    // grid: X Y Z                            in threads; missing sides are 1; 32 by default
    // threadgroup: X Y Z
    // template: T=float16 D=4 FLAG=true      template arguments
    // init: 0                                the outputs' initial value
    // strided: true                          ensure_row_contiguous=False
    // tolerance: 1e-5                        relative, else 1e-6
    // finds: KIND KIND                       bugs: the finding, or any one of several; valid: all
    // also: KIND                             bugs: what may be found besides, as a consequence
    // because: TEXT                          invalid: what the compiler says
    // source: TEXT                           invalid: where that is written
    // line: none                             no source line belongs to the finding
    // apple: refused | any                   bugs: what Apple's compiler does (else it accepts)
    // kernel: NAME                           the header holds a whole kernel
    // constants: 0:bool=true 1:int=5         its function constants
    // header                                 what follows goes before the kernel's signature
    // body                                   what follows is the kernel's body

VALUES are numbers and ranges a..b, repeated until the shape is full; inputs without them get a
fixed pattern. The lines that a finding may name end in `// BUG`. Each part is handed over padded
with blank lines, so that a line number in a finding is the line in the snippet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

ROOT = Path(__file__).parents[1] / "metalhost" / "corpus"
_KEY = re.compile(r"// ([a-z]+): (.*)")
_ARRAY = re.compile(r"(\w+) (\w+) ([\dx]+)(?:\[([^]]*)\])?(?: = (.*))?")
_MARK = re.compile(r"/[/*] BUG\b")
_INTEGERS = ("int", "uint", "bool")
Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class Array:
    name: str
    dtype: str
    base_shape: tuple[int, ...]
    view: tuple[slice, ...]
    values: tuple[float, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape after slicing."""
        return tuple(np.empty(self.base_shape, bool)[self.view].shape)

    @property
    def integral(self) -> bool:
        return self.dtype.startswith(_INTEGERS)

    @property
    def mx_dtype(self) -> mx.Dtype:
        return getattr(mx, "bool_" if self.dtype == "bool" else self.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Snippet:
    kind: str
    name: str
    title: str
    header: str
    body: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    marked: frozenset[int]
    keys: dict[str, str]

    @property
    def finds(self) -> tuple[str, ...]:
        return ("compile",) if self.kind == "invalid" else tuple(self.keys.get("finds", "").split())

    @property
    def grid(self) -> Dim3:
        return _dim3(self.keys.get("grid", "32"))

    @property
    def threadgroup(self) -> Dim3:
        return _dim3(self.keys.get("threadgroup", "32"))

    @property
    def init_value(self) -> float | None:
        return float(self.keys["init"]) if "init" in self.keys else None

    @property
    def template(self) -> list[tuple[str, Any]]:
        pairs = (item.split("=") for item in self.keys.get("template", "").split())
        return [(name, _template_value(text)) for name, text in pairs]

    @property
    def constants(self) -> dict[int, bool | int]:
        """Function constants by index."""
        found: dict[int, bool | int] = {}
        for item in self.keys.get("constants", "").split():
            index, kind, text = re.split("[:=]", item)
            found[int(index)] = text == "true" if kind == "bool" else int(text)
        return found

    def returning_at_once(self) -> Snippet:
        """The same to a compiler, and nothing to a GPU."""
        return replace(self, body="return;" + self.body)

    def arrays(self) -> list[mx.array]:
        """The inputs, evaluated; a sliced one keeps the strides of its base."""
        made = [mx.array(_fill(a)).astype(a.mx_dtype)[a.view] for a in self.inputs]
        mx.eval(made)
        return made

    def mismatch(self, outputs: list[mx.array]) -> str:
        """What differs from the expected outputs, in one line; "" when nothing does."""
        if len(outputs) != len(self.outputs):
            return f"{len(outputs)} outputs, {len(self.outputs)} expected"
        for spec, got in zip(self.outputs, outputs, strict=True):
            if spec.values is None:
                continue
            want = _fill(spec)
            have = np.array(got if spec.integral else got.astype(mx.float32))
            if have.shape != want.shape:
                return f"{spec.name} has shape {have.shape}, expected {want.shape}"
            close = _close(have, want, spec, float(self.keys.get("tolerance", "1e-6")))
            if not close.all():
                at = tuple(int(i) for i in np.argwhere(~close)[0])
                return f"{spec.name}{list(at)} is {have[at]}, expected {want[at]}"
        return ""


def load(kind: str) -> list[Snippet]:
    """All snippets of a kind, by name."""
    text = (ROOT / f"{kind}.metal").read_text(encoding="utf-8")
    parts = re.split(r"^//// (\w+)\n", text, flags=re.MULTILINE)[1:]
    return [_read(kind, *snippet) for snippet in zip(parts[::2], parts[1::2], strict=True)]


def run(snippet: Snippet, metal_kernel: Callable[..., Any], **options: Any) -> Any:
    """Launch through mx.fast.metal_kernel, or metalhost's function of the same signature."""
    kernel = metal_kernel(
        name=f"corpus_{snippet.name}",
        input_names=[a.name for a in snippet.inputs],
        output_names=[a.name for a in snippet.outputs],
        source=snippet.body,
        header=snippet.header,
        ensure_row_contiguous=snippet.keys.get("strided") != "true",
    )
    return kernel(
        inputs=snippet.arrays(),
        template=snippet.template or None,
        grid=snippet.grid,
        threadgroup=snippet.threadgroup,
        output_shapes=[a.shape for a in snippet.outputs],
        output_dtypes=[a.mx_dtype for a in snippet.outputs],
        init_value=snippet.init_value,
        **options,
    )


def parse_array(text: str) -> Array:
    found = _ARRAY.fullmatch(text)
    if not found:
        raise ValueError(f"not an array: {text!r}")
    name, dtype, shape, view, values = found.groups()
    slices = tuple(
        slice(*(int(n) if n else None for n in part.split(":")))
        for part in (view or ":").split(",")
    )
    numbers = tuple(_numbers(values, dtype)) if values else None
    return Array(name, dtype, tuple(int(n) for n in shape.split("x")), slices, numbers)


@functools.cache
def _read(kind: str, name: str, text: str) -> Snippet:
    parts: dict[str, list[str]] = {"keys": [], "header": [], "body": []}
    title, part = "", "keys"
    lines = text.rstrip("\n").split("\n")
    keys: dict[str, str] = {}
    arrays: dict[str, list[Array]] = {"in": [], "out": []}
    for number, line in enumerate(lines):
        key = _KEY.fullmatch(line)
        if line in ("// header", "// body"):
            part = line[3:]
        elif part == "keys" and number == 0:
            title = line.removeprefix("// ")
        elif part == "keys" and key and key[1] in arrays:
            arrays[key[1]].append(parse_array(key[2]))
        elif part == "keys" and key:
            keys[key[1]] = key[2]
        else:
            part = "body" if part == "keys" else part
            parts[part] += [""] * (number - len(parts[part])) + [line]
    if kind == "invalid":  # every one of them reads x and writes y
        arrays["in"].insert(0, parse_array("x float32 32"))
        arrays["out"].insert(0, parse_array("y float32 32"))
    return Snippet(
        kind=kind,
        name=name,
        title=title,
        header="".join(line + "\n" for line in parts["header"]),
        body="\n".join(parts["body"]),
        inputs=tuple(arrays["in"]),
        outputs=tuple(arrays["out"]),
        marked=frozenset(n for n, line in enumerate(lines, 1) if _MARK.search(line)),
        keys=keys,
    )


def _dim3(text: str) -> Dim3:
    x, y, z = [int(n) for n in text.split()] + [1] * (3 - len(text.split()))
    return x, y, z


def _template_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else getattr(mx, text)


def _numbers(text: str, dtype: str) -> list[float]:
    number: Callable[[str], float] = int if dtype.startswith(_INTEGERS) else float
    found: list[float] = []
    for item in text.split():
        first, _, last = item.partition("..")
        if last:
            low, high = int(first), int(last)
            found += range(low, high + 1) if low <= high else range(low, high - 1, -1)
        else:
            found.append(number(first))
    return found


def _fill(array: Array) -> np.ndarray[Any, Any]:
    kind = "float32" if not array.integral else array.dtype
    size = int(np.prod(array.base_shape))
    if array.values is None:
        steps = np.arange(size)
        pattern = steps % 7 if array.integral else (steps * 37 % 64 - 32) / 8
        return pattern.astype(kind).reshape(array.base_shape)
    if size % len(array.values):
        raise ValueError(f"{array.name}: {len(array.values)} values do not fill {size}")
    cycle = np.array(array.values, dtype=kind)
    return np.tile(cycle, size // len(array.values)).reshape(array.base_shape)


def _close(have: Any, want: Any, spec: Array, tolerance: float) -> Any:
    if spec.integral:
        return have == want
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=1e-30))
    with np.errstate(invalid="ignore"):
        near = np.abs(have - want) <= np.maximum(tolerance * np.abs(want), tolerance * scale * 1e-3)
    return np.where(finite, near, (have == want) | (np.isnan(have) & np.isnan(want)))
