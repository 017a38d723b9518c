"""CUDA texts of a kernel's launches, as the CUDA backend hands them to MLX, and cubins of them.

Neither a GPU nor MLX's CUDA build is needed for it; who launches them is torch_launch.py.
"""

from __future__ import annotations

import sys

from mlx_lm_openevolve import ops
from mlx_lm_openevolve.backends import cuda, cuda_modules
from mlx_lm_openevolve.kernels.kernel import Kernel, Launch
from mlx_lm_openevolve.ops.attention.workload import Workload
from mlx_lm_openevolve.ops.linear.workload import Workload as Product

CUDA_TYPES = {
    "bool_": "bool",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "uint8": "uint8_t",
    "float32": "float",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
}
Planned = tuple[Kernel, dict[str, int], Workload | Product]
Text = tuple[Launch, str, tuple[tuple[str, str], ...]]


def texts_of(kernel: Kernel, params: dict[str, int], w: Workload | Product) -> list[Text]:
    """(launch, CUDA source, arguments as (array, pointer | shape | strides | ndim)), in order."""
    launches = kernel.launches(w, params)
    made = {name: dtype for launch in launches for name, _, dtype in launch.outputs}
    return [(launch, *kernel_text(launch, w, made)) for launch in launches]


def other_dtypes(w: Workload | Product) -> dict[str, str]:
    """The dtypes of arguments that may differ from the workload's."""
    if isinstance(w, Product):
        packed = {"indices": "uint32", "weight": "uint32"}
        return packed | ({"scales": "uint8"} if w.mode == "mxfp4" else {})
    packed = {"keys": "uint32", "values": "uint32"} if w.kv_bits else {}
    return {"mask": "bool_" if w.mask == "bool" else w.dtype, "scale": "float32"} | packed


def kernel_text(
    launch: Launch, w: Workload | Product, made: dict[str, str]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """CUDA source and arguments of a launch; `made` are the dtypes of all launches' outputs."""
    op = ops.of(w)
    absent = {name: CUDA_TYPES[x.dtype] for name, x in op.absent(w).items()}
    dtypes = dict.fromkeys(op.inputs(w.variant), w.dtype) | other_dtypes(w) | made
    return text_of(launch, dtypes, absent)


def text_of(
    launch: Launch, dtypes: dict[str, str], absent: dict[str, str]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """kernel_text for arrays of these dtypes; `absent`: as cuda.sources takes it."""
    header, source = cuda.sources(launch, absent)
    parameters, plan = [], []
    for name in launch.spec.inputs:
        if name in absent:
            continue
        parameters.append(f"const {CUDA_TYPES[dtypes[name]]}* {name}")
        plan.append((name, "pointer"))
        for suffix, kind in (("shape", "Shape"), ("strides", "Strides"), ("ndim", "int")):
            if f"{name}_{suffix}" in source:
                parameters.append(f"const __grid_constant__ {kind} {name}_{suffix}")
                plan.append((name, suffix))
    for name, _, dtype in launch.outputs:
        parameters.append(f"{CUDA_TYPES[dtype]}* {name}")
        plan.append((name, "pointer"))
    text = (
        f"{cuda_modules.PRELUDE}{header}namespace mlx::core::cu {{\n"
        f'extern "C" __global__ void kernel({", ".join(parameters)}) {{\n{source}\n}}\n}}\n'
    )
    return text, tuple(plan)


def compiled(architecture: str, text: str) -> bytes | None:
    """The cubin of a CUDA source, as the CUDA backend compiles it; None where it fails."""
    options = cuda_modules.options(architecture)
    try:
        return cuda_modules.compiled(text, "mlx::core::cu::kernel", options)[0]
    except RuntimeError as error:
        print(str(error)[:1000], file=sys.stderr)
        return None
