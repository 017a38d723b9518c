"""Importer: an OpenEvolve program with mx.fast.metal_kernel becomes a kernel folder, and one with a
tile heuristic the defaults of a kernel's params (see heuristics).

The program is read with `ast` and never run. Its attention function is followed symbolically, once
for each kind of mask: shapes become workload fields, numbers become launch expressions, arrays
stay what the caller passed. What cannot be followed is named with its line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import ops
from ..errors import KernelError
from ..kernels.kernel import FORMAT, Kernel
from . import heuristics
from .launches import Launched
from .reader import MASK_KINDS, EvolvedProgram, read, scan
from .values import Array, Number, Scalar, Unreadable, why

__all__ = ["import_heuristic", "import_program", "read_heuristic", "read_program"]

_MAX_BYTES = 1 << 20


def import_program(program: Path | str, out: Path | str) -> Kernel:
    """Write the kernel that a program launches into the folder `out`. Raises KernelError with the
    line and the construct that cannot be read."""
    return _save(read_program(program), Path(out))


def import_heuristic(
    program: Path | str, kernel: Kernel, out: Path | str, params: Sequence[str] = ()
) -> Kernel:
    """Write `kernel` with the defaults that `read_heuristic` finds into the folder `out`. Raises
    KernelError."""
    return _save(read_heuristic(program, kernel, params), Path(out))


def _save(kernel: Kernel, out: Path) -> Kernel:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KernelError(f"{out}: exists and is not an empty folder")
    kernel.save(out)
    return kernel


def read_heuristic(program: Path | str, kernel: Kernel, params: Sequence[str] = ()) -> Kernel:
    """`kernel`, a product's, with what choose_tile_size(M, N, K, device_info) of a program returns
    as defaults of its params: those that a dict names, or a tuple in the order of `params`. M are
    the rows, K the numbers of each, N those of a row of the result. Raises KernelError with the
    line of what no default can say, or with a usual workload at which it is no value of a param."""
    path = Path(program)
    tree = _tree(path)
    function = heuristics.find(tree)
    if function is None:
        raise KernelError(f"{path}: no function {heuristics.FUNCTION} in it")
    if kernel.op != "linear":
        raise KernelError(f"kernel {kernel.id} is of {kernel.op}: M, N and K are a product's")
    try:
        found = heuristics.choices(tree, function)
    except Unreadable as error:
        raise KernelError(f"{path}:{error.line}: {error}") from None
    except RecursionError:
        raise KernelError(f"{path}: nested too deeply") from None
    keys = [key for key, _ in found if key] or list(params)
    known = [param.name for param in kernel.params]
    if len(keys) != len(found) or not set(keys) <= set(known) or len(set(keys)) != len(keys):
        asked = ", ".join(keys) or "no params"
        raise KernelError(
            f"{path}:{function.lineno}: {len(found)} values for {asked}; name as many of "
            f"{', '.join(known)}"
        )
    defaults = dict(zip(keys, (text for _, text in found), strict=True))
    made = kernel.with_defaults(defaults, f"{kernel.origin}; defaults imported from {path.name}")
    usual = ops.get(kernel.op).search.suites.values()
    for workload in (workload for suite in usual for workload in suite):
        if made.applies_to(workload):
            try:
                made.default_params(workload)
            except KernelError as error:
                raise KernelError(f"{path}: at {workload.slug}: {error}") from None
    return made


def read_program(program: Path | str) -> Kernel:
    """The kernel that a program launches. Raises KernelError."""
    path = Path(program)
    tree = _tree(path)
    found: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    problems: list[str] = []
    for kind in MASK_KINDS:
        try:
            found[kind] = _parts(scan(tree), kind, path.name)
        except Unreadable as error:
            problems.append(f"{path}:{error.line}: {error}" if error.line else f"{path}: {error}")
        except RecursionError:
            problems.append(f"{path}: nested too deeply")
    if not found:
        hint = "; it has a tile heuristic: name its kernel with --kernel"
        raise KernelError(problems[0] + (hint if heuristics.find(tree) else ""))
    # Kinds of masks that make the same kernel; of several kernels the one of most kinds.
    alike = [[kind for kind in found if found[kind] == parts] for parts in found.values()]
    kinds = max(alike, key=len)
    meta, sources = found[kinds[0]]
    one = f"mask == '{kinds[0]}'" if len(kinds) == 1 else f"mask in {tuple(kinds)!r}"
    meta["applies"] = f"{one} and {meta['applies']}"
    return Kernel.from_parts(meta, sources, str(path))


def _tree(path: Path) -> ast.Module:
    """A program's syntax. Raises KernelError."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise KernelError(f"{path}: longer than {_MAX_BYTES} bytes")
        return ast.parse(text)
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror or error}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise KernelError(f"{where}: not Python: {getattr(error, 'msg', error)}") from None


def _parts(program: EvolvedProgram, kind: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """kernel.json (its `applies` without the mask) and the sources, for one kind of mask."""
    result, launches = read(program, kind)
    last = launches[-1]
    names = {result: "out"}
    specs, sources = [], {}
    for i, launch in enumerate(launches):
        file = f"{_identifier(launch.kernel.name)}{i or ''}.metal"
        spec, source = _spec(launch, names, file)
        specs.append(spec)
        sources[file] = source
    shape = specs[-1]["outputs"][last.outputs.index(result)]["shape"]
    wanted = [] if shape[-1:] == ["v_head_dim"] else ["head_dim == v_head_dim"]
    sinks = any("sinks" in spec["inputs"] for spec in specs)
    wanted += ["sinks" if sinks else "not sinks", "kv_bits == 0"]
    return {
        "format": FORMAT,
        "name": _identifier(last.kernel.name),
        "op": "attention",
        "variants": ["float"],
        "origin": "imported",
        "description": f"Imported from {name}.",
        "applies": " and ".join(wanted),
        "params": {},
        "launches": specs,
    }, sources


def _spec(launch: Launched, names: Mapping[str, str], file: str) -> tuple[dict[str, Any], str]:
    """A launch of kernel.json and its source, with the family's names for its arrays."""
    source, template = launch.kernel.source, dict(launch.template)
    renamed: dict[str, str] = {}
    inputs: list[str] = []
    for name, value in zip(launch.kernel.inputs, launch.inputs, strict=True):
        if isinstance(value, Scalar):
            constant = f"{name.upper()}_VALUE"
            source, count = re.subn(rf"\b{name}\s*\[\s*0\s*\]", constant, source)
            if re.search(rf"\b{name}\b", source) or not count:
                raise Unreadable(
                    f"input {name} is a number, yet not read as {name}[0]", launch.line
                )
            template[constant] = value.number
        elif isinstance(value, Array):
            role = names.get(value.name, value.name)
            if role in inputs:
                raise Unreadable(f"{role} is handed over twice", launch.line)
            inputs.append(role)
            renamed[name] = role
            if role == "scale":
                source = _scale(source, name, value, template)
        else:
            raise Unreadable(f"input {name}: {why(value)}", launch.line)
    outputs = []
    for name, key, shape, dtype in zip(
        launch.kernel.outputs, launch.outputs, launch.shapes, launch.dtypes, strict=True
    ):
        renamed[name] = names.get(key, key)
        outputs.append({"name": renamed[name], "shape": [n.text for n in shape], "dtype": dtype})
    spec = {
        "source": file,
        "inputs": inputs,
        "outputs": outputs,
        "template": {name: _value(value) for name, value in template.items()},
        "grid": [n.text for n in launch.grid],
        "threadgroup": [n.text for n in launch.threadgroup],
    }
    return spec, _rename(source, renamed)


def _scale(source: str, name: str, scale: Array, template: Mapping[str, Number | str]) -> str:
    """The source with the family's scale, a float32 array of one element, in place of its own."""
    if not scale.shaped:
        source = re.sub(rf"\b{name}\b(?!\s*\[)", f"{name}[0]", source)
    dtype = next((key for key, value in template.items() if value == "dtype"), "")
    if scale.rounded and dtype:
        source = re.sub(rf"\b{name}\s*\[\s*0\s*\]", f"{dtype}({name}[0])", source)
    return source


def _value(value: Number | str) -> str:
    return value if isinstance(value, str) else value.text


def _rename(source: str, names: Mapping[str, str]) -> str:
    """The source with its arrays (and their _shape, _strides, _ndim) under other names; a local
    name that is in the way gets out of it."""
    table = {
        old + suffix: new + suffix
        for old, new in names.items()
        for suffix in ("", "_shape", "_strides", "_ndim")
    }
    for new in set(table.values()) - set(table):
        table[new] = f"{new}_local"
    pattern = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
    return pattern.sub(lambda match: table.get(match.group(), match.group()), source)


def _identifier(name: str) -> str:
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:60] or "kernel"
    return text if text[0].isalpha() else f"k{text}"
