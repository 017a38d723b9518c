"""Limits, faults and the sandbox: what a kernel cannot do to its caller."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from probe import launch, messages, on_host, only


@on_host
@pytest.mark.parametrize("sanitize", [True, False])
def test_an_endless_loop_ends_at_the_time_limit(sanitize: bool) -> None:
    body = "uint i = 1;\nwhile (i != 0) {\n  i = i * 3 | 1;\n}\ny[thread_position_in_grid.x] = i;"
    done = launch(body, time_limit=0.5, sanitize=sanitize)
    finding = only(done, "time-limit")
    assert finding.line in (2, 3)
    assert done.outputs == []


@on_host
@pytest.mark.parametrize("sanitize", [True, False])
def test_a_wild_pointer_harms_nobody(sanitize: bool) -> None:
    body = (
        "uint i = thread_position_in_grid.x;\n"
        "*(device float*)(0x123456789000ul + 4 * i) = 1;\ny[i] = 1;"
    )
    done = launch(body, sanitize=sanitize)
    finding = only(done, "out-of-bounds" if sanitize else "fault")
    assert finding.line == 2


@on_host
def test_limits_of_size() -> None:
    body = "threadgroup float t[9000];\nuint i = thread_position_in_grid.x;\nt[i] = 0; y[i] = t[i];"
    finding = only(launch(body), "threadgroup-memory")
    assert "32768" in finding.message
    assert "1025" in only(launch("y[0] = 1;", n=1025, group=1025), "threadgroup-size").message
    a = mx.zeros((1 << 20,))
    done = launch("y[thread_position_in_grid.x] = a[0];", [a], memory_limit=1 << 20)
    assert "1048576" in only(done, "memory-limit").message


@on_host
def test_launches_from_many_threads_at_once() -> None:
    body = "y[thread_position_in_grid.x] = a[0] + thread_position_in_grid.x;"
    inputs = [np.full(8, k, np.float32) for k in range(8)]
    results: dict[int, Any] = {}

    def work(k: int) -> None:
        results[k] = launch(body, [inputs[k]]).outputs[0].tolist()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {k: [k + i for i in range(32)] for k in range(8)}


@on_host
def test_no_file_stays_open() -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")
    body = "y[thread_position_in_grid.x] = 1;"
    launch(body)
    before = len(list(folder.iterdir()))
    for _ in range(10):
        launch(body)
    assert len(list(folder.iterdir())) <= before


@on_host
@pytest.mark.parametrize(
    "header",
    [
        '#include "/etc/passwd"',
        "#include <../../etc/passwd>",
        "#in\\\nclude </etc/passwd>",
        "#in\\ \nclude </etc/passwd>",
        "//\r#include </etc/passwd>",
        "/**/ # /**/ include </etc/passwd>",
        "/*\n*/ #include </etc/passwd>",
        "%:include </etc/passwd>",
        "#/* \n */include </etc/passwd>",
        "# /* a */ /* \n */ include </etc/passwd>",
        "/\\\n* x *\\\n/ #include </etc/passwd>",
        "/\\\r\n* x *\\\n\r/ #include </etc/passwd>",
        "/??/\n* x *??/\n/ #include </etc/passwd>",
        "%\\\n:include </etc/passwd>",
        '_Pra\\\ngma("weak f = system")',
        "#define F </etc/passwd>\n#include F",
        "constant char q = '\"'; /* \" */\n#include </etc/passwd>",
        "#import </etc/passwd>",
        "#embed </etc/passwd>",
        '#line 1 "<entry>"\nasm("");',
        '# 1 "<entry>"\nasm("");',
        "#pragma redefine_extname f system",
        "#pragma clang attribute push",
        '_Pragma("weak f = system")',
        '#define P "weak f = system"\n_Pragma(P)',
        'asm(".incbin \\"/etc/passwd\\"");',
        '#define J(a, b) a##b\nJ(as, m)(".incbin \\"/etc/passwd\\"");',
        'constant char q = \'"\'; // "/*"\nasm(""); constant char r = \'"\'; // "*/"',
        'extern "C" int system(const char*);',
        "#define J(a, b) a##b\nJ(ext, ern) int system(int);",
        'int f() __attribute__((alias("system")));',
        "[[gnu::weak]] int f();",
        "#define J(a, b) a##b\nint f() { return J(__builtin_, trap)(), 0; }",
        "namespace mh { int f(); }",
        "#define J(a, b) a##b\nint f() { J(m, h)::finish(); return 0; }",
        '[ [gnu::weakref("system")] ] int f();',
        '<:<:gnu::weakref("system"):>:> int f();',
        '??(??(gnu::weakref("system")??)??) int f();',
        '[[maybe_unused, gnu::weakref("system")]] int f();',
        '[[using gnu: weakref("system")]] int f();',
        f'[[deprecated("{"a" * 300}"), gnu::weakref("system")]] int f();',
        f'[[{"maybe_unused, " * 100}gnu::weakref("system")]] int f();',
        '[[deprecated(a[0], "]"), gnu::weakref("system")]] int f();',
        f'[[maybe_unused,{chr(10) * 20}gnu::weakref("system")]] int f();',
        f'[{chr(10) * 20}[gnu::weakref("system")]] int f();',
        '[[/**/gnu /**/ ::weakref("system")]] int f();',
        '[[gnu::\\\nweakref("system")]] int f();',
        '#define G gnu\n[[G::weakref("system")]] int f();',
        "#define H #\nH include </etc/passwd>",
        "#define H %:\nH include </etc/passwd>",
        '#define H #\nH 1 "elsewhere"\nasm("");',
        '#define H #\nint a; H 1 "elsewhere"\n',
        'constant char q[] = R"(")"; asm(""); // "',
        'constant char q[] = R"x()")x"; asm(""); // "',
        "constant int q = 1'0; asm(\"\"); constant int r = 1'0;",
    ],
)
def test_no_way_out_of_the_sandbox(header: str) -> None:
    done = launch("y[thread_position_in_grid.x] = 1;", header=header)
    assert {f.kind for f in done.findings} == {"sandbox"}, messages(done)
    assert len(done.findings) == 1, messages(done)
    assert "root:" not in messages(done)
