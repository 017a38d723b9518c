"""The CUDA kernels of tuned/ launched on PyTorch's tensors, without MLX: gpu_time and sanitizer.

Kernels of both families. They are compiled by NVRTC from the same text that the CUDA backend hands
to MLX. MLX itself runs nothing here: neither its memory nor its own launches are in what is timed
or watched. Needs PyTorch with CUDA, and mlx with its CUDA headers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from cuda_texts import Planned, compiled, texts_of

from mlx_lm_openevolve.backends.metal_to_cuda import UnsupportedOnCuda
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.kernels.registry import Registry, tuned_root
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.ops.linear.call import SORTED
from mlx_lm_openevolve.ops.linear.routings import deal
from mlx_lm_openevolve.ops.linear.workload import Workload as Product

CACHE_BYTES = 200e6  # larger than the L2 cache: each call then reads device memory
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def shipped() -> list[Kernel]:
    """The kernels of tuned/."""
    return Registry(tuned_root(), writable=False).kernels()


def carried(kernel: Kernel, params: dict[str, int], w: Workload | Product) -> bool:
    """Whether the CUDA backend carries a kernel's launches."""
    try:
        texts_of(kernel, params, w)
    except UnsupportedOnCuda:
        return False
    return True


def cubins_of(planned: Iterable[Planned]) -> dict[str, bytes | None]:
    """The cubin of every source that these launch, for this GPU: what a Call needs."""
    texts = list({text for call in planned for _, text, _ in texts_of(*call)})
    major, minor = torch.cuda.get_device_capability()
    architecture = f"sm_{major}{minor}{'a' if major >= 9 else ''}"
    with ProcessPoolExecutor(16) as pool:  # NVRTC needs no driver: children of a fork have none
        return dict(zip(texts, pool.map(partial(compiled, architecture), texts), strict=True))


class Call:
    """A kernel's launches with their outputs, ready for torch tensors."""

    def __init__(
        self,
        kernel: Kernel,
        params: dict[str, int],
        w: Workload | Product,
        cubins: dict[str, bytes | None],
    ) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.steps = []
        for launch, text, plan in texts_of(kernel, params, w):
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self._must(self.driver.cuModuleLoadData(ctypes.byref(module), cubins[text]))
            self._must(self.driver.cuModuleGetFunction(ctypes.byref(function), module, b"kernel"))
            outputs = {
                name: torch.full(shape, math.nan, dtype=getattr(torch, dtype), device="cuda")
                for name, shape, dtype in launch.outputs
            }
            blocks = [g // t for g, t in zip(launch.grid, launch.threadgroup, strict=True)]
            self.steps.append((function, plan, outputs, (*blocks, *launch.threadgroup)))

    @staticmethod
    def _must(error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA driver error {error}")

    def bind(self, arrays: dict[str, Any]) -> Any:
        """A function of no arguments that launches on torch's current stream, giving `out`."""
        arrays, bound = dict(arrays), []
        for function, plan, outputs, sizes in self.steps:
            arrays |= outputs
            values: list[Any] = []
            for name, kind in plan:
                t = arrays[name]
                if kind == "pointer":
                    values.append(ctypes.c_void_p(t.data_ptr()))
                elif kind == "ndim":
                    values.append(ctypes.c_int(t.dim()))
                elif kind == "shape":
                    values.append((ctypes.c_int32 * 10)(*t.shape))
                else:
                    values.append((ctypes.c_int64 * 10)(*t.stride()))
            pointers = [ctypes.cast(ctypes.pointer(v), ctypes.c_void_p) for v in values]
            bound.append((function, sizes, (ctypes.c_void_p * len(values))(*pointers), values))

        def launch() -> torch.Tensor:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            for function, sizes, pointers, _ in bound:
                self._must(self.driver.cuLaunchKernel(function, *sizes, 0, stream, pointers, None))
            out: torch.Tensor = arrays["out"]
            return out

        return launch


def inputs(w: Workload | Product, count: int = 0) -> list[dict[str, Any]]:
    """Arrays by name, one set for each cache or matrix (0: as many as do not fit into the GPU's
    cache); beyond kv_len the caches hold NaN."""
    if isinstance(w, Product) and w.experts:
        return expert_inputs(w)
    count = count or max(2, min(200, math.ceil(CACHE_BYTES / w.stored_bytes())))
    if isinstance(w, Product):
        return [product_inputs(w) for _ in range(count)]
    dtype = getattr(torch, w.dtype)
    shared: dict[str, Any] = {"scale": torch.tensor([w.head_dim**-0.5], device="cuda")}
    if w.mask == "bool":
        shared["mask"] = torch.ones(w.batch, 1, 1, w.kv_len, dtype=torch.bool, device="cuda")
        for row in range(w.batch):  # left padding, as a batch has it
            shared["mask"][row, ..., : row % 8] = False
    elif w.mask == "additive":
        shared["mask"] = torch.randn(w.batch, w.q_heads, w.q_len, w.kv_len, device="cuda").to(dtype)
    if w.sinks:
        shared["sinks"] = torch.randn(w.q_heads, device="cuda", dtype=dtype)
    sets = []
    for _ in range(count):
        arrays = dict(shared)
        arrays["queries"] = torch.randn(
            w.batch, w.q_heads, w.q_len, w.head_dim, device="cuda", dtype=dtype
        )
        rows = (w.batch, w.kv_heads, w.kv_len + 256)
        for name, width in (("key", w.head_dim), ("value", w.v_head_dim)):
            parts = {f"{name}s": width}
            if w.kv_bits:
                words = (*rows, width * w.kv_bits // 32)
                whole = torch.randint(-(1 << 31), 1 << 31, words, device="cuda", dtype=torch.int32)
                arrays[f"{name}s"] = whole[:, :, : w.kv_len]
                parts = dict.fromkeys((f"{name}_scales", f"{name}_biases"), width // w.kv_group)
            for part, columns in parts.items():
                buffer = torch.randn((*rows, columns), device="cuda", dtype=dtype)
                buffer[:, :, w.kv_len :] = math.nan
                arrays[part] = buffer[:, :, : w.kv_len]
        if w.latent:
            arrays["values"] = arrays["keys"]
        sets.append(arrays)
    return sets


def floats(w: Workload, arrays: dict[str, Any], name: str) -> torch.Tensor:
    """The keys ("key") or values ("value") in float64."""
    x = arrays[f"{name}s"]
    if not w.kv_bits:
        plain: torch.Tensor = x.double()
        return plain
    shifts = torch.arange(0, 32, w.kv_bits, device="cuda")
    steps = (x[..., None] >> shifts & ((1 << w.kv_bits) - 1)).flatten(-2).double()
    scales, biases = (
        arrays[f"{name}_{part}"].double().repeat_interleave(w.kv_group, -1)
        for part in ("scales", "biases")
    )
    found: torch.Tensor = steps * scales + biases
    return found


def product_inputs(w: Product) -> dict[str, Any]:
    """A random x and a random matrix in w's packing, with experts as many matrices."""
    dtype = getattr(torch, w.dtype)
    matrices = (w.experts, w.n) if w.experts else (w.n,)
    words, shared = (*matrices, w.k * w.bits // 32), (*matrices, w.k // w.group)
    x = (w.batch, 1, 1, w.k) if w.experts else (w.batch, w.length, w.k)
    arrays: dict[str, Any] = {
        "x": torch.randn(x, device="cuda", dtype=dtype),
        "weight": torch.randint(-(1 << 31), 1 << 31, words, device="cuda", dtype=torch.int32),
    }
    if w.mode == "mxfp4":
        scales = torch.randint(120, 128, shared, device="cuda", dtype=torch.uint8)
        return arrays | {"scales": scales}
    both = (torch.randn(shared, device="cuda", dtype=dtype) for _ in range(2))
    return arrays | dict(zip(("scales", "biases"), both, strict=True))


def expert_inputs(w: Product) -> list[dict[str, Any]]:
    """Rows that go to other experts at each call, until all of several sets were read."""
    sets = [product_inputs(w) for _ in range(1 + math.ceil(CACHE_BYTES / w.all_bytes))]
    calls = []
    for at, indices in deal(np.random.default_rng(0), w, len(sets), w.rows >= SORTED):
        routed = torch.from_numpy(indices.astype(np.int32)).cuda()
        calls.append(sets[at] | {"indices": routed})
    return calls


def product(w: Product, arrays: dict[str, Any]) -> torch.Tensor:
    """x times the unpacked matrix in float64, or times those of the experts."""
    packed = [arrays[name] for name in ("weight", "scales", "biases") if name in arrays]
    if not w.experts:
        return times(w, arrays["x"], packed)
    x = arrays["x"].expand(w.batch, w.length, 1, w.k).reshape(w.rows, w.k)
    experts = arrays["indices"].flatten().tolist()
    rows = [times(w, x[i], [part[e] for part in packed]) for i, e in enumerate(experts)]
    return torch.stack(rows).reshape(w.shape)


def times(w: Product, x: torch.Tensor, packed: list[torch.Tensor]) -> torch.Tensor:
    """x times one unpacked matrix in float64."""
    shifts = torch.arange(0, 32, w.bits, device="cuda")
    parts = []
    for first in range(0, w.n, 8192):
        words, *shared = (part[first : first + 8192] for part in packed)
        numbers = (words[..., None] >> shifts & ((1 << w.bits) - 1)).flatten(-2)
        if w.mode == "mxfp4":
            floats = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device="cuda").double()
            values = torch.cat([floats, -floats])[numbers]
            values *= torch.exp2(shared[0].double() - 127).repeat_interleave(w.group, -1)
        else:
            scales, biases = (part.double().repeat_interleave(w.group, -1) for part in shared)
            values = numbers * scales + biases
        parts.append(x.double() @ values.T)
    return torch.cat(parts, -1)


def reference(w: Workload | Product, arrays: dict[str, Any]) -> torch.Tensor:
    """The exact result: of attention head by head of the KV cache."""
    if isinstance(w, Product):
        return product(w, arrays)
    outputs = []
    keys, values = floats(w, arrays, "key"), floats(w, arrays, "value")
    for head in range(w.kv_heads):
        q = arrays["queries"][:, head * w.group : (head + 1) * w.group].double()
        k, v = (x[:, head : head + 1] for x in (keys, values))
        scores = q @ k.transpose(-1, -2) * float(arrays["scale"])
        if w.mask == "additive":
            scores += arrays["mask"][:, head * w.group : (head + 1) * w.group].double()
        if w.mask == "bool":
            scores = scores.masked_fill(~arrays["mask"], -1e300)
        elif w.mask == "causal":
            seen = torch.ones(w.q_len, w.kv_len, device="cuda").tril(w.kv_len - w.q_len)
            scores = scores.masked_fill(seen == 0, -1e300)
        if w.sinks:
            sink = arrays["sinks"][head * w.group : (head + 1) * w.group].double()
            sink = sink.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([sink, scores], -1)
        outputs.append(torch.softmax(scores, -1)[..., -w.kv_len :] @ v)
    return torch.cat(outputs, 1)
