"""The link to a fleet: where its scheduler is, TLS, and what every machine must share."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import platform
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mlx_lm_openevolve._version import __version__
from mlx_lm_openevolve.device import BACKENDS, Device, release, version_of
from mlx_lm_openevolve.errors import MachineError, UsageError
from mlx_lm_openevolve.files import printable
from mlx_lm_openevolve.kernels.registry import DEVICE
from mlx_lm_openevolve.kernels.verdict import gate_versions

from ..pool import CHECK
from ..record import Record

__all__ = ["FACTS", "MAX_TEXT", "Facts", "Link", "engine", "one_line", "versions"]

FACTS = "mlx-lm-openevolve"  # under which a worker's facts stand in what dask knows of it
MAX_TEXT = 8 << 20  # of a request and of an answer
_CONNECT_SECONDS = 10.0
_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def engine() -> Any:
    """dask.distributed, silent. Raises UsageError where it is not installed."""
    try:
        import dask
        import distributed
    except ImportError as error:
        raise UsageError(f"{error.name}: pip install 'mlx-lm-openevolve[fleet]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)  # we say it in one line
    dask.config.set({"distributed.worker.profile.enabled": False})
    return distributed


def one_line(text: Any, limit: int) -> str:
    """What another machine calls itself, for a line of ours."""
    return printable(" ".join(str(text).split()))[:limit]


def versions() -> dict[str, str]:
    """What must be the same on all machines of a fleet."""
    return {
        "mlx-lm-openevolve": __version__,
        "gate": " ".join(gate_versions().values()),
        "mlx": ".".join(map(str, release(version_of("mlx")))),
        "distributed": version_of("distributed"),
        "python": ".".join(map(str, release(platform.python_version()))),
    }


@dataclass(frozen=True)
class Facts(Record):
    """What a worker announces: "check" or the slug of its chip, Device's fields, its versions."""

    role: str
    device: Mapping[str, Any]
    versions: Mapping[str, str]

    @classmethod
    def from_json(cls, data: Any) -> Facts:
        """What `to_json` wrote. Raises ValueError or TypeError where it is nothing of the kind."""
        facts = super().from_json(data)
        known = isinstance(facts.device, dict) and isinstance(facts.versions, dict)
        if not known or not isinstance(facts.role, str) or not DEVICE.fullmatch(facts.role):
            raise ValueError("it announces neither check nor a chip")
        if facts.role not in (CHECK, facts.device.get("slug")):
            raise ValueError("it announces a chip that is not its own")
        if facts.device.get("backend") not in BACKENDS:
            raise ValueError("its backend is unknown")
        for f in fields(Device):
            value = facts.device.get(f.name, "" if str(f.type) == "str" else 0)
            if type(value).__name__ != str(f.type) or not str(value).isprintable():
                raise ValueError(f"its device's {f.name} is malformed")
        return facts

    def differs(self) -> str:
        """How its versions differ from those here, "" where they do not."""
        own = versions()
        rows = [(name, one_line(self.versions.get(name, "unknown"), 40)) for name in own]
        found = [f"{name} {there}, here {own[name]}" for name, there in rows if there != own[name]]
        return "; ".join(found)


@dataclass(frozen=True)
class Link:
    """Where a scheduler is, and the files of TLS: authority, certificate and key; () without."""

    address: str
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Link:
        """The link that the options name. Raises UsageError, also where what would cross a network
        is not encrypted."""
        found = _ADDRESS.fullmatch(options.scheduler)
        if not found or not 0 < int(found[3]) < 1 << 16:
            raise UsageError(f"--scheduler {options.scheduler}: write tls://HOST:8786 or tcp://...")
        asked = (options.tls_ca, options.tls_cert, options.tls_key)
        link = cls(options.scheduler, tuple(file for file in asked if file is not None))
        if found[1] == "tls":
            if len(link.files) != 3:
                raise UsageError("tls:// needs --tls-ca, --tls-cert and --tls-key")
            link.security()
        elif link.files:
            raise UsageError(f"--tls-...: write tls:// in place of tcp:// in {link.address}")
        elif not (_loopback(link.host) or options.insecure):
            raise UsageError(
                f"{link.address} is another machine: use tls://, or --insecure where everybody in "
                "the network may run code here"
            )
        return link

    @property
    def host(self) -> str:
        """The scheduler's host, without brackets."""
        return self.address.partition("://")[2].rpartition(":")[0].strip("[]")

    def security(self) -> Any:
        """What dask is to encrypt with, None without TLS. Raises UsageError where a file is no
        certificate or key."""
        if not self.files:
            return None
        ca, cert, key = map(str, self.files)
        names = {f"tls_{role}_{what}": path for role in ("client", "worker", "scheduler")
                 for what, path in (("cert", cert), ("key", key))}  # fmt: skip
        security = engine().Security(tls_ca_file=ca, require_encryption=True, **names)
        try:
            security.get_connection_args("client")
        except OSError as error:  # of the kind that SSLError is, too
            why = getattr(error, "reason", "") or error.strerror or str(error)
            raise UsageError(f"{ca}, {cert}, {key}: {why}") from None
        return security

    async def probe(self) -> None:
        """Raise MachineError, in one line, where the scheduler cannot be reached."""
        engine()
        from distributed.comm import connect

        security = self.security()
        arguments = security.get_connection_args("client") if security else {}
        asked = connect(self.address, timeout=_CONNECT_SECONDS, **arguments)
        try:
            comm = await asyncio.wait_for(asked, _CONNECT_SECONDS)  # the handshake included
        except (OSError, asyncio.TimeoutError) as error:
            raise MachineError(self._why(error)) from None
        except Exception:  # whatever dask makes of words that are not its own
            raise MachineError(f"{self.address}: what answers is no scheduler") from None
        await comm.close()

    def _why(self, error: BaseException | None) -> str:
        said: list[Any] = []
        while error is not None:
            said.append(error)
            error = error.__cause__ or error.__context__
        text = " ".join(f"{type(e).__name__} {e}" for e in said)
        if any(isinstance(e, ssl.SSLError) for e in said) or re.search("SSL|TLS|certificate", text):
            return f"{self.address}: its certificate and ours are not of one authority"
        reason = next((e.strerror for e in reversed(said) if getattr(e, "strerror", "")), "")
        return f"{self.address}: no scheduler answers{f' ({reason})' if reason else ''}"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
