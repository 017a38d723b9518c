"""The worker of a search: a process that checks and measures candidates and may die of them.

python -m mlx_lm_openevolve.evolve.worker      asked by the evaluator, see processes.py
"""

from __future__ import annotations

from typing import Any

from mlx_lm_openevolve.processes import serve

__all__ = ["MACHINE", "answer", "main"]

MACHINE = "machine"  # the cause of what is no candidate's fault: the run ends, and can go on later


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What a request came to, whatever it raises; "ended" where this process's device is lost."""
    try:
        found = _perform(request)
    except OSError as error:  # a full disk: no candidate's fault
        found = {"cause": MACHINE, "finding": error.strerror or str(error)}
    except Exception as error:  # a candidate's fault or ours: it is this candidate that failed
        text = (str(error).strip() or "no message").splitlines()[0][:500]
        found = {"cause": "error", "finding": f"{type(error).__name__}: {text}"}
    if found.get("cause") and request.get("op") != "check":
        from . import measure

        if not measure.healthy():  # what came next would be blamed for it
            found = {**found, "cause": "crash", "ended": True}
    return found


def _perform(request: dict[str, Any]) -> dict[str, Any]:
    from mlx_lm_openevolve.kernels.kernel import Kernel
    from mlx_lm_openevolve.ops.attention.workload import Workload

    from . import check, measure

    workload = Workload.parse(request["workload"])
    if request["op"] == "baseline":
        return measure.baseline(workload, request["backend"], request["seed"])
    kernel = Kernel.from_parts(request["meta"], request["sources"])
    params = request["params"] or kernel.default_params(workload)
    if request["op"] == "check":
        return {**check.check(kernel, params, workload, request["seed"]), "params": params}
    if request["op"] == "measure":
        found = measure.measure(
            kernel,
            params,
            workload,
            request["backend"],
            best=request["best"],
            seconds=request["seconds"],
            seed=request["seed"],
            sdpa_seconds=request["sdpa_seconds"],
        )
        return {**found, "params": params}
    raise ValueError(f"unknown request {request['op']!r}")


def main() -> None:
    """Answer requests until standard input ends."""
    serve(answer)


if __name__ == "__main__":
    main()
