"""Kernel: a folder of data (kernel.json and its sources) as a checked, frozen object.

    kernel.json --load--> Kernel --launches(workload, params)--> [Launch] --> a backend

Nothing in a kernel folder is ever executed by Python: shapes, grids and the predicate are launch
expressions over the workload's fields and the kernel's params.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ops
from ..device import FACTS, Device, detect
from ..errors import KernelError, NewerFormatError
from ..files import read_regular
from ..ops import DTYPES, Workload
from ..ops.base import Value
from .expressions import Expression
from .spec import (
    MAX_SOURCE_BYTES,
    SOURCE_NAME,
    Fields,
    LaunchSpec,
    Param,
    read_launch,
    read_param,
)

__all__ = ["FORMAT", "KERNEL_ID", "Kernel", "Launch", "kernel_id"]

FORMAT = 2
KERNEL_ID = re.compile(r"[0-9a-f]{12}")
MAX_LAUNCHES = 8
MAX_THREADS = 1024
MAX_OUTPUT_BYTES = 1 << 32
_KEYS = {
    *("format", "name", "op", "variants", "origin", "description", "applies", "params", "launches")
}


@dataclass(frozen=True)
class Launch:
    """One launch with its numbers: what a backend needs, all expressions evaluated.

    grid counts threads (as mx.fast.metal_kernel does); template values are int, bool or the name
    of a dtype; `outputs` are (name, shape, dtype name).
    """

    spec: LaunchSpec
    template: tuple[tuple[str, Value], ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    outputs: tuple[tuple[str, tuple[int, ...], str], ...]


def kernel_id(meta: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """First 12 hex digits of the SHA-256 of a kernel's canonical content."""
    text = json.dumps([meta, sources], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def content(folder: Path | str) -> tuple[dict[str, Any], dict[str, str]]:
    """What kernel.json of a folder says, and the sources that it names. Raises KernelError, of its
    kind NewerFormatError where a newer release wrote it."""
    path = Path(folder) / "kernel.json"
    meta = _json_object(path)
    number = meta.get("format")
    if type(number) is int and number > FORMAT:
        raise NewerFormatError(f"{path}: format {number} is of a newer release")
    sources: dict[str, str] = {}
    launches = meta.get("launches")
    for launch in launches if isinstance(launches, list) else []:
        for field in ("source", "header"):
            name = launch.get(field) if isinstance(launch, dict) else None
            if name is None and field == "header":
                continue
            if not isinstance(name, str) or not SOURCE_NAME.fullmatch(name):
                raise KernelError(f"{path}: launches: {field} is {name!r}, expected NAME.metal")
            sources[name] = _text(path.with_name(name), MAX_SOURCE_BYTES)
    return meta, sources


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel as data. `load` reads a folder, `from_parts` takes its content, `save` writes it."""

    id: str
    name: str
    op: str
    variants: tuple[str, ...]
    origin: str
    description: str
    applies: Expression
    params: tuple[Param, ...]
    specs: tuple[LaunchSpec, ...]
    meta: Mapping[str, Any]
    sources: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path | str) -> Kernel:
        """Read a kernel folder. Raises KernelError naming the file and the field."""
        meta, sources = content(folder)
        return cls.from_parts(meta, sources, str(Path(folder) / "kernel.json"))

    @classmethod
    def from_parts(
        cls, meta: Mapping[str, Any], sources: Mapping[str, str], where: str = "kernel.json"
    ) -> Kernel:
        """Check the content of kernel.json and its sources (by file name). Raises KernelError, of
        its kind NewerFormatError where a newer release wrote it."""
        read = Fields(where)
        number = meta.get("format") if isinstance(meta, Mapping) else None
        if type(number) is int and number > FORMAT:
            raise NewerFormatError(f"{where}: format {number} is of a newer release")
        if not isinstance(meta, Mapping) or number != FORMAT:
            raise KernelError(f"{where}: format: expected {FORMAT}")
        if not isinstance(sources, Mapping):
            raise KernelError(f"{where}: sources: expected an object")
        read.known(meta, "", _KEYS)
        name = read.name(meta.get("name"), "name")
        op = ops.get(read.choice(meta.get("op"), "op", tuple(ops.FAMILIES)))
        variants = meta.get("variants")
        if not isinstance(variants, list) or not variants:
            raise KernelError(f"{where}: variants: expected a list of {', '.join(op.variants)}")
        variants = tuple(read.choice(variant, "variants", op.variants) for variant in variants)
        if len(set(variants)) != len(variants):
            raise KernelError(f"{where}: variants: one is named twice")
        origin, description = meta.get("origin", ""), meta.get("description", "")
        if not isinstance(origin, str) or not origin or not isinstance(description, str):
            raise KernelError(f"{where}: origin: expected where the kernel comes from")

        raw_params = meta.get("params", {})
        if not isinstance(raw_params, Mapping):
            raise KernelError(f"{where}: params: expected an object")
        params = tuple(read_param(read, key, raw, op.fields) for key, raw in raw_params.items())
        names = op.fields | {param.name for param in params}

        raw_launches = meta.get("launches")
        if not isinstance(raw_launches, list) or not 0 < len(raw_launches) <= MAX_LAUNCHES:
            raise KernelError(f"{where}: launches: expected 1 to {MAX_LAUNCHES} launches")
        specs: list[LaunchSpec] = []
        arrays = {name for variant in variants for name in op.inputs(variant)}
        taken = set(arrays)  # a launch with a `when` may have an alternative that writes the same
        for i, raw in enumerate(raw_launches):
            spec = read_launch(read, f"launches[{i}]", raw, sources, names, arrays, taken)
            arrays |= {output.name for output in spec.outputs}
            if spec.when is None:
                taken |= {output.name for output in spec.outputs}
            specs.append(spec)
        # `save` writes each under its name: one that no launch reads could lead out of the folder.
        files = {launch.get(field) for launch in raw_launches for field in ("source", "header")}
        if unread := set(sources) - files:
            raise KernelError(f"{where}: no launch reads {min(map(repr, unread))[:100]}")
        if "out" not in {output.name for output in specs[-1].outputs}:
            raise KernelError(f"{where}: launches: the last one writes no output named 'out'")
        return cls(
            id=kernel_id(meta, sources),
            name=name,
            op=op.name,
            variants=variants,
            origin=origin,
            description=description,
            applies=Expression(meta.get("applies"), op.fields, f"{where}: applies"),
            params=params,
            specs=tuple(specs),
            meta=meta,
            sources=dict(sources),
        )

    def with_defaults(self, defaults: Mapping[str, str], origin: str) -> Kernel:
        """This kernel with other default expressions of some of its params. Raises KernelError."""
        params = dict(self.meta["params"])
        for name, text in defaults.items():
            params[name] = {**params[name], "default": text}
        return Kernel.from_parts({**self.meta, "origin": origin, "params": params}, self.sources)

    def save(self, folder: Path | str) -> None:
        """Write the kernel's files into `folder`, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for file, source in self.sources.items():
            (folder / file).write_bytes(source.encode("ascii"))
        (folder / "kernel.json").write_text(json.dumps(self.meta, indent=1) + "\n", "ascii")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kernel) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def native(self) -> frozenset[str]:
        """The backends that launches were written for; empty where all are Metal, which every
        backend carries."""
        return frozenset(spec.language for spec in self.specs) - {"metal"}

    def applies_to(self, workload: Workload) -> bool:
        """Whether the kernel says it can serve this workload (exact or bucketed)."""
        return (
            self.op == workload.op
            and workload.variant in self.variants
            and self.applies.boolean(workload.fields())
        )

    def default_params(self, workload: Workload, device: Device | None = None) -> dict[str, int]:
        """The params' defaults for a workload on a device (None: this process's). Raises
        KernelError."""
        values = workload.fields()
        if any(param.default.used & FACTS for param in self.params):
            values |= (device or detect()).facts()
        return self.check_params({param.name: param.chosen(values) for param in self.params})

    def check_params(self, params: Mapping[str, Any]) -> dict[str, int]:
        """`params` as a plain dict in the kernel's order; KernelError where one is out of range."""
        if set(params) != {param.name for param in self.params}:
            expected = [param.name for param in self.params]
            raise KernelError(f"kernel {self.id}: params {sorted(params)}, expected {expected}")
        for param in self.params:
            value = params[param.name]
            if type(value) is not int or value not in param.values:
                raise KernelError(
                    f"kernel {self.id}: param {param.name} is {value!r}, expected one of "
                    f"{list(param.values)}"
                )
        return {param.name: params[param.name] for param in self.params}

    def launches(self, workload: Workload, params: Mapping[str, int]) -> list[Launch]:
        """The launches for an exact workload; its expressions see what Workload.fields() says.
        Raises KernelError."""
        values = {**workload.fields(), **self.check_params(params)}
        launches = [
            _launch(spec, values)
            for spec in self.specs
            if spec.when is None or spec.when.boolean(values)
        ]
        written = set(ops.get(self.op).inputs(workload.variant))
        for launch in launches:
            missing = set(launch.spec.inputs) - written
            if missing:
                raise KernelError(f"kernel {self.id}: {launch.spec.file} lacks {min(missing)!r}")
            written |= {name for name, _, _ in launch.outputs}
        if "out" not in written:
            raise KernelError(f"kernel {self.id}: no launch writes 'out' with {dict(params)}")
        return launches


def _launch(spec: LaunchSpec, values: Mapping[str, Value]) -> Launch:
    where = spec.file
    grid = tuple(expression.integer(values) for expression in spec.grid)
    threads = tuple(expression.integer(values) for expression in spec.threadgroup)
    if not all(0 < n < 1 << 31 for n in (*grid, *threads)):
        raise KernelError(f"{where}: grid {grid} with threadgroup {threads} is out of range")
    if threads[0] * threads[1] * threads[2] > MAX_THREADS:
        raise KernelError(f"{where}: threadgroup {threads} has more than {MAX_THREADS} threads")
    outputs = []
    for output in spec.outputs:
        shape = tuple(expression.integer(values) for expression in output.shape)
        dtype = output.dtype(values)
        size = functools.reduce(lambda a, b: a * b, shape, 4)
        if dtype not in DTYPES or min(shape) < 1 or size > MAX_OUTPUT_BYTES:
            raise KernelError(f"{where}: output {output.name} is {dtype} {shape}: out of range")
        outputs.append((output.name, shape, str(dtype)))
    return Launch(
        spec=spec,
        template=tuple((name, expression(values)) for name, expression in spec.template),
        grid=(grid[0], grid[1], grid[2]),
        threadgroup=(threads[0], threads[1], threads[2]),
        outputs=tuple(outputs),
    )


def _text(path: Path, limit: int) -> str:
    """The file's ASCII text. A link is refused: nothing is read outside its folder."""
    try:
        if path.is_symlink() or not path.is_file():
            raise KernelError(f"{path}: no such file")
        data = read_regular(path, limit)
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror or error}") from None
    if len(data) > limit:
        raise KernelError(f"{path}: longer than {limit} bytes")
    if not data.isascii():
        raise KernelError(f"{path}: not ASCII")
    return data.decode("ascii").replace("\r\n", "\n")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(_text(path, MAX_SOURCE_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, KernelError):
            raise
        raise KernelError(f"{path}: not JSON: {error}") from None
    if not isinstance(meta, dict):
        raise KernelError(f"{path}: expected a JSON object")
    return meta
