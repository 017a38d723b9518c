"""The generated functions through which the runtime starts a kernel."""

from __future__ import annotations

from .declarations import Declarations, KernelFunction

__all__ = ["entry", "resolve"]

# A place in the grid for each attribute: the field of MhPlace.
ATTRIBUTES = {
    "thread_position_in_grid": "thread_in_grid",
    "thread_position_in_threadgroup": "thread_in_group",
    "threadgroup_position_in_grid": "group_in_grid",
    "threads_per_threadgroup": "threads_in_group",
    "dispatch_threads_per_threadgroup": "full_threads_in_group",
    "threads_per_grid": "threads_in_grid",
    "grid_size": "threads_in_grid",
    "threadgroups_per_grid": "groups_in_grid",
    "thread_index_in_threadgroup": "index_in_group",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
    "dispatch_simdgroups_per_threadgroup": "full_simdgroups",
}
EXPRESSIONS = {
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
    "thread_index_in_quadgroup": "(mh_place()->index_in_group % 4)",
    "quadgroup_index_in_threadgroup": "(mh_place()->index_in_group / 4)",
    "quadgroups_per_threadgroup": "(mh_place()->simdgroups * 8)",
    "dispatch_quadgroups_per_threadgroup": "(mh_place()->full_simdgroups * 8)",
}


def resolve(declared: Declarations, name: str) -> tuple[str, KernelFunction | None]:
    """The call expression and the kernel of a name: a host name, `f` or `f<args>`."""
    call = declared.host_names.get(name, name)
    return call, declared.kernels.get(call.split("<", 1)[0].split("::")[-1].strip())


def entry(call: str, function: KernelFunction) -> str:
    """The generated functions that bind a kernel's arguments."""
    declare, arguments = [], []
    for i, p in enumerate(function.parameters):
        kind = f"MhParameters::at<{i}>"
        if p.attribute in ("buffer", "threadgroup"):
            slot = (p.index or 0) + (32 if p.attribute == "threadgroup" else 0)
            declare.append(f"mh::declare<{kind}>({slot});")
            arguments.append(f"mh::bind<{kind}>({slot})")
        elif p.attribute in ATTRIBUTES:
            arguments.append(f"mh::coordinate<{kind}>(mh_place()->{ATTRIBUTES[p.attribute]})")
        else:
            expression = EXPRESSIONS.get(p.attribute, "0u")
            arguments.append(f"mh::coordinate<{kind}>({expression})")
    return (
        '\n# 1 "<entry>"\n'
        f"typedef mh::Parameters<decltype(&{call})> MhParameters;\n"
        'extern "C" MH_EXTERNAL void mh_signature() { ' + " ".join(declare) + " }\n"
        'extern "C" MH_EXTERNAL MH_UNCHECKED void mh_entry() { '
        f"{call}({', '.join(arguments)}); }}\n"
    )
