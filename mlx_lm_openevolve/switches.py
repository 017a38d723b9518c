"""Switches of the environment: variables that are on or off, and the one that switches all off."""

from __future__ import annotations

import logging
import os

__all__ = ["KEEP", "SWITCH", "SWITCHES", "UNSAFE", "ignored", "switched", "switched_off"]

SWITCH = "MLX_LM_OPENEVOLVE"
UNSAFE = "MLX_LM_OPENEVOLVE_UNSAFE"
KEEP = "MLX_LM_OPENEVOLVE_KEEP"  # what the host backend compiled stays beside what it built
SWITCHES = (SWITCH, UNSAFE, KEEP)
_SAYS = {
    **dict.fromkeys(("0", "off", "false", "no"), False),
    **dict.fromkeys(("1", "on", "true", "yes"), True),
}

log = logging.getLogger("mlx_lm_openevolve")
_told: set[str] = set()  # what was warned of


def switched(name: str) -> bool | None:
    """What a variable says; None where it is not set, empty, or says neither, which is warned of
    once in a process."""
    if (reason := ignored(name)) and reason not in _told:
        _told.add(reason)
        log.warning("%s", reason)
    return _SAYS.get(_value(name))


def ignored(name: str) -> str:
    """Why a variable does nothing although it is set, "" where it says on or off."""
    if _value(name) in ("", *_SAYS):
        return ""
    return f"{name}={os.environ[name][:80]!r} is ignored: write 0 or 1"


def switched_off() -> str:
    """The setting that switches everything off, such as "MLX_LM_OPENEVOLVE=0"; "" where none
    does."""
    return f"{SWITCH}={os.environ[SWITCH]}" if switched(SWITCH) is False else ""


def _value(name: str) -> str:
    return os.environ.get(name, "").strip().lower()
