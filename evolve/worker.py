"""The worker of a search: a process that checks and measures candidates and may die of them.

python -m mlx_lm_openevolve.evolve.worker      asked by the evaluator, see processes.py
"""

from __future__ import annotations

from typing import Any

from mlx_lm_openevolve.processes import serve

__all__ = ["answer", "main"]


def answer(data: dict[str, Any]) -> dict[str, Any]:
    """The answer to a Request, both as plain data: a HostCheck, a Measurement, a Baseline or what
    the gate Judged (its verdict is kept here, where it counts), or the cause and finding of what
    was raised. "ended": this process has lost its device."""
    from mlx_lm_openevolve.backends.trouble import GpuTimeout

    from .evaluation import MACHINE, TIMEOUT

    try:
        result = _perform(data)
    except GpuTimeout as error:
        result = {"cause": TIMEOUT, "finding": str(error), "ended": True}
    except OSError as error:  # a full disk, a full GPU: no candidate's fault
        result = {"cause": MACHINE, "finding": error.strerror or str(error)}
    except Exception as error:  # a candidate's fault or ours: it is this candidate that failed
        text = (str(error).strip() or "no message").splitlines()[0][:500]
        result = {"cause": "error", "finding": f"{type(error).__name__}: {text}"}
    if result.get("cause") and data.get("op") != "check":
        from . import measure

        if not measure.healthy():  # what came next would be blamed for it
            known = result["cause"] in (MACHINE, TIMEOUT)
            result = {**result, "cause": result["cause"] if known else "crash", "ended": True}
    return result


def _perform(data: dict[str, Any]) -> dict[str, Any]:
    from mlx_lm_openevolve import ops
    from mlx_lm_openevolve.device import detect
    from mlx_lm_openevolve.kernels.registry import Registry, user_root

    from . import check, measure
    from .evaluation import Request

    request = Request.from_json(data)
    workload = ops.parse(request.workload).bucket()
    if request.op == "baseline":
        return measure.baseline(workload, request.backend, request.seed).to_json()
    if request.op not in ("check", "measure", "gate"):
        raise ValueError(f"unknown request {request.op!r}")
    kernel = request.kernel
    assert kernel is not None
    params = dict(request.params or {})
    if not params:
        params = kernel.default_params(workload, detect(request.backend or None))
    if request.op == "check":
        return check.check(kernel, params, workload, request.seed).to_json()
    if request.op == "gate":
        from . import publish
        from .events import Published

        user = Registry(user_root())
        found = publish.judged_here(kernel, params, workload, request.backend, user)
        event = Published(workload.slug, kernel.id, params, device=detect(request.backend).slug)
        publish.stored(event, found, kernel, [user])
        return found.to_json()
    return measure.measure(kernel, params, request).to_json()


def main() -> None:
    """Answer requests until standard input ends."""
    serve(answer)


if __name__ == "__main__":
    main()
