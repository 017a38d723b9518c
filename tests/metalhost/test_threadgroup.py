"""Threadgroup memory worked out from the text: as much as a run takes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from probe import on_host

from mlx_lm_openevolve.metalhost import metal_kernel, threadgroup_bytes

HEADER = "template <typename T, int N>\nconstexpr int pool() { return N * int(sizeof(T)) / 2; }\n"
BODY = """
// threadgroup float no[1 << 20];
constexpr int WIDE = pool<T, N>();
using Four = vec<T, 4>;
threadgroup T a[WIDE], b[2][N];
const int i = thread_position_in_threadgroup.x;
{ threadgroup Four c[N]; threadgroup float d; c[0] = Four(0); d = 0; a[i] = T(0); b[1][0] = T(0); }
threadgroup T* p = (threadgroup T*)a;
y[i] = p[i];
"""


@on_host
def test_the_sizes_are_those_of_a_run() -> None:
    drawn = ((mx.float32, 4), (mx.bfloat16, 17), (mx.bfloat16, 64))
    templates = [[("T", kind), ("N", n)] for kind, n in drawn]
    found = threadgroup_bytes(BODY, HEADER, templates)
    ran = []
    for template in templates:
        done = metal_kernel("sizes", [], ["y"], BODY, HEADER)(
            [], template, grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)],
            output_dtypes=[template[0][1]], count=True,
        )  # fmt: skip
        assert done.ok, done.findings
        assert done.counters is not None
        ran.append(done.counters.threadgroup_memory)
    assert found == ran
    assert len(set(ran)) == 3


@on_host
@pytest.mark.parametrize(
    ("body", "template", "known"),
    [
        ("threadgroup float a[8]; y[0] = a[0] = 1;", [], [32]),
        ("y[0] = 1;", [("N", 3)], [0]),
        ("threadgroup float a[N + nowhere];", [("N", 3)], None),
        ("threadgroup float a[N];", [("N", -3)], None),
        ('#include "/etc/passwd"\nthreadgroup float a[2];', [], None),
        ("threadgroup float a[2];\n#pragma nonsense\nconstexpr int N = 3;", [], [16]),
    ],
)
def test_what_cannot_be_read_is_unknown(body: str, template: Any, known: Any) -> None:
    assert threadgroup_bytes(body, "", [template]) == known
