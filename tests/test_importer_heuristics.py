"""Reading an OpenEvolve program's choose_tile_size by its syntax alone."""

from __future__ import annotations

import ast
import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest
from products import product_kernel

from mlx_lm_openevolve.device import Device
from mlx_lm_openevolve.errors import KernelError
from mlx_lm_openevolve.importer import (
    heuristics,
    import_heuristic,
    read_heuristic,
    read_program,
)
from mlx_lm_openevolve.kernels.expressions import MAX_DEFAULT, Expression
from mlx_lm_openevolve.kernels.kernel import Kernel
from mlx_lm_openevolve.ops.linear.workload import Bucket

KERNEL = product_kernel()
SMALL = """
def choose_tile_size(M, N, K, device_info):
    return {"tiles": 2 if K > N else 1, "warps": 16 if M <= 4 else 8}
"""
# What such programs do: by chip, by memory, by size and by ratio, with scales that are no integers.
LARGE = '''
import math
SMALLEST: int = 8
CHIPS = {"old": 48, "new": 96}

def choose_tile_size(M, N, K, device_info):
    """Tiles of C = A B."""
    chip, gigabytes = device_info["chip"], device_info.get("memory_gb", 8.0)
    if "M4" in chip:
        tile, step = CHIPS["new"], 32
    elif chip == "Apple M2" or "M3" in chip:
        tile, step = 80, 16
    else:
        tile = CHIPS["old"]
        step = SMALLEST
    tile = int(tile * 1.25) if not gigabytes < 16 else tile
    work = M * N * K
    scale = 0.75
    if work > 10_000_000:
        scale += 0.5
    elif work % 3 == 0:
        scale -= 0.25
    ratio = max(M, N) / min(M, K) if min(M, K) > 0 else 1.0
    wide = ratio >= 1.5 * 2 and N != K
    deep = -(-K // 256)
    tile_n = ((int(tile * scale) + step - 1) // step) * step
    if wide:
        tile_n *= 2
        if deep > 8:
            return M, max(step, min(tile_n, N)), math.ceil(K / 3)
    if 1 < M <= 7 and tile_n:
        pass
    return min(M, 64), tile_n, float(math.floor(K / 7)) + deep - 1
'''


def write(folder: Path, text: str) -> Path:
    path = folder / "program.py"
    path.write_text(text)
    return path


def choices(text: str) -> list[tuple[str, str]]:
    tree = ast.parse(text)
    function = heuristics.find(tree)
    assert function is not None
    return heuristics.choices(tree, function)


def run(text: str, *arguments: Any) -> Any:
    """What Python says of a program of ours."""
    names: dict[str, Any] = {}
    exec(compile(text, "program", "exec"), names)
    return names["choose_tile_size"](*arguments)


@pytest.mark.parametrize("text", [SMALL, LARGE])
def test_expressions_say_what_the_program_says(text: str) -> None:
    rng = random.Random(1)
    names = frozenset({"rows", "n", "k", "device_name", "device_memory", "device_cores"})
    found = [(key, Expression(e, names, "test", MAX_DEFAULT)) for key, e in choices(text)]
    sizes = [1, 3, 8, 21, 64, 100, 768, 4096, 14336, 128256]
    chips = ["Apple M1", "Apple M2", "Apple M3 Max", "Apple M4"]
    cases = itertools.product([1, 2, 7, 8, 32], sizes, sizes, chips, [8, 16, 64])
    for m, n, k, chip, memory in rng.sample(list(cases), 1500):
        said = run(text, m, n, k, {"chip": chip, "memory_gb": memory})
        values = {"rows": m, "n": n, "k": k, "device_name": chip, "device_memory": memory << 30}
        got = [e.integer({**values, "device_cores": 8}) for _, e in found]
        assert got == list(said.values() if isinstance(said, dict) else said), (m, n, k, chip)


def test_a_dict_names_its_params_and_a_tuple_is_told(tmp_path: Path) -> None:
    made = read_heuristic(write(tmp_path, SMALL), KERNEL)
    assert [param.default.text for param in made.params] == [
        "2 if n < k else 1",
        "16 if rows <= 4 else 8",
    ]
    assert made.default_params(Bucket(1, 1, 64, 128, "bfloat16")) == {"tiles": 2, "warps": 16}
    text = "def choose_tile_size(M, N, K, device_info): return 8 if M > 1 else 16, 4"
    made = read_heuristic(write(tmp_path, text), KERNEL, ["warps", "tiles"])
    assert [param.default.text for param in made.params] == ["4", "8 if 1 < rows else 16"]
    text = "def choose_tile_size(a, b, c, d): return 16"
    made = read_heuristic(write(tmp_path, text), KERNEL, ["warps"])
    assert [param.default.text for param in made.params] == ["1", "16"]
    assert made.sources == KERNEL.sources
    assert made.origin == "handwritten; defaults imported from program.py"


def test_a_chip_s_facts_become_those_that_a_default_sees(tmp_path: Path) -> None:
    text = """
def choose_tile_size(M, N, K, device_info):
    return {"tiles": 4 if "M4" in device_info["chip"] else 1,
            "warps": 16 if device_info["memory_gb"] >= 16 and device_info["gpu_cores"] > 8 else 4}
"""
    made = read_heuristic(write(tmp_path, text), KERNEL)
    workload = Bucket(1, 1, 64, 128, "bfloat16")
    for name, cores, memory, params in (
        ("Apple M4 Max", 40, 64 << 30, {"tiles": 4, "warps": 16}),
        ("Apple M3", 10, 8 << 30, {"tiles": 1, "warps": 4}),
        ("Apple M1", 8, 16 << 30, {"tiles": 1, "warps": 4}),
    ):
        chip = Device("metal", "x", name, "x", cores, memory)
        assert made.default_params(workload, chip) == params


def test_a_folder_is_written_and_loads(tmp_path: Path) -> None:
    made = import_heuristic(write(tmp_path, SMALL), KERNEL, tmp_path / "out")
    assert Kernel.load(tmp_path / "out") == made
    with pytest.raises(KernelError, match="not an empty folder"):
        import_heuristic(write(tmp_path, SMALL), KERNEL, tmp_path / "out")


def body(*lines: str) -> str:
    text = "".join(f"    {line}\n" for line in lines)
    return f"def choose_tile_size(M, N, K, device_info):\n{text}"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        (body("for i in range(3): M += 1", "return M, 8"), 2, "`for` is not read"),
        (body("while M > 3: M //= 2", "return M, 8"), 2, "`while` is not read"),
        (body("t = 1", "try: t = 2", "except: pass", "return t, 8"), 3, "`try` is not read"),
        (body("return pick(M), 8"), 2, "`pick(M)` is not read"),
        (body("return __import__('os').getpid(), 8"), 2, "is not read"),
        (body("return (lambda: 1)(), 8"), 2, "is not read"),
        (body("return [1 for x in M], 8"), 2, "is not read"),
        (body("return round(M / 2), 8"), 2, "`round(M / 2)` is not read"),
        (body("return M ** 2, 8"), 2, "`M ** 2` is not read"),
        (body("return device_info['cpu_count'], 8"), 2, "no 'cpu_count'"),
        (body("return int(N / (M - 1)), 8"), 2, "divides by what may be 0 or negative"),
        (body("return M // 0, 8"), 2, "divides by what may be 0"),
        (body("return int(M - 3), 8"), 2, "`int(M - 3)` is not read"),
        (body("return M / 2, 8"), 1, "returns value 1, a fraction"),
        (body("return 'M', 8"), 1, "returns value 1, no number"),
        (body("return x, 8"), 2, "`x` is not known"),
        (body("if M > 4:", "    x = 1", "return x, 8"), 4, "`x` is not known"),
        (body("if N > 4:", "    return 1, 8"), 2, "return different kinds"),
        (body("if N > 4:", "    return 1, 8", "return 1"), 2, "give different kinds"),
        (body("pass"), 1, "returns value 1, no number"),
        (body("global t", "return 1, 8"), 2, "`global` is not read"),
        (body("device_info['x'] = 1", "return 1, 8"), 2, "is not read"),
        (body("return 1e300, 8"), 2, "`1e+300` is not read"),
        ("def choose_tile_size(M, N): return M, N", 1, "expected (M, N, K, device_info)"),
        (body("return M"), 1, "1 values for tiles, warps"),
    ],
)
def test_what_is_not_carried_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, word: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(KernelError) as caught:
        read_heuristic(path, KERNEL, ["tiles", "warps"])
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "params", "word"),
    [
        ("x = 1", [], "no function choose_tile_size in it"),
        (body("return {'tile': 1}"), [], "1 values for tile; name as many of tiles, warps"),
        (body("return 1, 8"), [], "2 values for no params"),
        (body("return 1, 8"), ["tiles", "tiles"], "2 values for tiles, tiles"),
        (body("return N // 1024, 8"), ["tiles", "warps"], "param tiles is"),
        ("def choose_tile_size(", [], "not Python"),
    ],
)
def test_what_fits_no_kernel_is_said(
    tmp_path: Path, text: str, params: list[str], word: str
) -> None:
    with pytest.raises(KernelError, match=word) as caught:
        read_heuristic(write(tmp_path, text), KERNEL, params)
    assert str(caught.value).startswith(str(tmp_path / "program.py"))


def test_a_kernel_of_attention_has_no_such_sizes(tmp_path: Path, copy_first: Kernel) -> None:
    with pytest.raises(KernelError, match="is of attention"):
        read_heuristic(write(tmp_path, SMALL), copy_first)
    with pytest.raises(KernelError, match="it has a tile heuristic: name its kernel"):
        read_program(write(tmp_path, SMALL))


@pytest.mark.parametrize(
    "lines",
    [
        ["t = N", *["t = t * t if t > 2 else t + 1"] * 60, "return 1, t"],
        ["t = N > K", *["t = (t or N > 5) if t else (t and K > 6)"] * 60, "return 1, 4 + t"],
        ["t = 3", *["t = t * t"] * 60, "return 1, t"],
        [*["if N > 5: return 1, 8"] * 3000, "return 1, 4"],
        [*[f"if N > {i} and K > 9:\n        if K > {i}: return 1, 8" for i in range(400)],
         "return 1, 4"],
        [f"return 1, {'max(' * 70}N{', K)' * 70}"],
        [f"return 1, {'-(' * 90}N{')' * 90}"],
    ],
    ids=["number", "condition", "constant", "returns", "both ways", "calls", "signs"],
)  # fmt: skip
def test_what_grows_or_nests_ends_soon_and_runs_nothing(tmp_path: Path, lines: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises(KernelError) as caught:
        read_heuristic(write(tmp_path, body(*lines)), KERNEL, ["tiles", "warps"])
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 600


def test_a_bound_folds_what_a_few_rows_never_reach() -> None:
    text = body("if M > 128 or M < 1:", "    return 4, 4", "return min(M, 64) if M <= 32 else 1, 8")
    assert choices(text) == [("", "rows"), ("", "8")]
