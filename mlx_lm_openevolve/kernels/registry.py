"""Registry: kernels by content and verdicts by device and workload, as plain files.

    <root>/v2/kernels/<id>/kernel.json, *.metal, host.json
    <root>/v2/devices/<device>/<layout>.json        {"verdicts": [a line each], "checksum": ...}
    <root>/v2/devices/<device>/<layout>.raw.json.gz  their raw samples: {key of a verdict: raw}
    <root>/v2/devices/<device>/poison.json          kernels that ended a worker process there
    <root>/v2/devices/<device>/timeouts.json        workloads that were gated in vain at first use

A layout (Bucket.layout) is what the calls of one model have in common: a process reads one file.

Readers take no lock and never raise: what does not parse, or does not match its hash, is moved
aside and logged once, and calls run on MLX's own. What another user may have written, a file or a
folder, is left alone and logged once. Writers hold a file lock and replace whole files.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from .. import ops
from ..errors import KernelError, NewerFormatError, RegistryError, WorkloadError
from ..files import printable, read_regular, write_atomic
from ..home import misplaced, unwritable, user_root
from ..ops import Bucket, Workload
from . import records
from .kernel import KERNEL_ID, Kernel, content, kernel_id
from .verdict import Verdict, binding

__all__ = ["DEVICE", "Registry", "tuned_root", "user_root"]

log = logging.getLogger("mlx_lm_openevolve")

VERSION = "v2"
MAX_RAW_BYTES = 64 << 20
LOCK_SECONDS = 10.0
ABANDONED_SECONDS = 24 * 3600.0
Read = tuple[Verdict, dict[str, Any]]  # a verdict, and the record as it was read
_told: set[str] = set()  # reasons that were logged
DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


def tuned_root() -> Path:
    """Root of the registry that ships with the package."""
    return Path(__file__).parent.parent / "tuned"


class Registry:
    """One registry root. Reading never raises; writing raises RegistryError."""

    def __init__(self, root: Path | str, writable: bool = True) -> None:
        self.root = Path(root)
        self.writable = writable
        self._owners = {0, _user(), *(_owner(self.root) if not writable or _user() == 0 else ())}
        self.refusal = misplaced(self.root) or _open_above(self.root) if writable else ""
        self.refusal = self.refusal or self._distrust(self.root / VERSION)
        # What anyone may write is not read either: there is nothing below the null device.
        self._base = (Path(os.devnull) if self.refusal else self.root) / VERSION
        _tell(self.refusal)
        self._kernels: dict[str, Kernel] = {}
        self._damaged: set[Path] = set()
        self._files: dict[Path, tuple[Any, tuple[list[Read], list[Any], dict[str, Any]]]] = {}

    def __repr__(self) -> str:
        return f"Registry({str(self.root)!r})"

    @property
    def problem(self) -> str:
        """Why nothing can be stored, "" where it can, as far as permissions say."""
        folders = (self._base / name for name in ("kernels", "devices"))
        return self.refusal or next(filter(None, map(unwritable, folders)), "")

    def _distrust(self, path: Path) -> str:
        """Why a file or folder is not read, "" where it is: others may have written it, or what it
        lies in, up to the root. What does not exist has no fault."""
        for part in (path, *path.parents):
            with contextlib.suppress(OSError):
                found = part.stat()
                if found.st_mode & stat.S_IWOTH:
                    return f"{part} can be written by every user of this machine (chmod o-w)"
                if found.st_uid not in self._owners:
                    return f"{part} belongs to another user of this machine (uid {found.st_uid})"
            if part == self.root:
                break
        return ""

    def _trusts(self, path: Path) -> bool:
        """Whether a part of the registry may be read; the reason why not is logged once."""
        reason = "" if self.refusal else self._distrust(path)
        _tell(reason)
        return not reason

    def _names(self, *folders: str) -> list[str]:
        """What a folder below the root holds, in order; [] where it is not to be read."""
        folder = self._base.joinpath(*folders)
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError:
            return []
        return names if self._trusts(folder) else []

    # Kernels

    def kernel(self, id: str, family: str = "") -> Kernel | None:
        """The kernel of that id, None where there is none that is whole, or it is not of the family
        that is named, whose code alone is loaded."""
        known = self._kernels.get(id)
        if known is not None:
            return known if family in ("", known.op) else None
        folder = self._base / "kernels" / id
        if not KERNEL_ID.fullmatch(id) or not folder.is_dir():
            return None
        files = [folder / name for name in self._names("kernels", id)]
        if not all(map(self._trusts, [folder, *files])):
            return None
        try:
            meta, sources = content(folder)
        except NewerFormatError:
            return None
        except KernelError as error:
            self._quarantine(folder, str(error))
            return None
        if family not in ("", meta.get("op")):
            return None
        kernel = None
        try:
            kernel = Kernel.from_parts(meta, sources, str(folder / "kernel.json"))
            found = kernel.id
        except KernelError as error:  # where it is whole, another release can read it
            log.info("%s", error)
            found = kernel_id(meta, sources)
        if found != id:
            self._quarantine(folder, f"{folder}: content does not match its id ({found})")
            return None
        if kernel is not None:
            self._kernels[id] = kernel
        return kernel

    def kernels(self, family: str = "") -> list[Kernel]:
        """All kernels that are whole, or those of a family, by id."""
        names = filter(KERNEL_ID.fullmatch, self._names("kernels"))
        kernels = (self.kernel(name, family) for name in names)
        return [kernel for kernel in kernels if kernel is not None]

    def add(self, kernel: Kernel) -> None:
        """Store a kernel under its id; nothing to do where it is there already."""
        if self.kernel(kernel.id) is not None:
            return
        with self._writing("kernels") as folder:
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
            try:
                kernel.save(temporary)
                temporary.chmod(0o755)
                for file in temporary.iterdir():
                    file.chmod(0o644)
                if not (folder / kernel.id).exists():
                    temporary.rename(folder / kernel.id)
                elif reason := self._distrust(folder / kernel.id):
                    raise RegistryError(reason)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    # Verdicts

    def verdicts(self, device: str, workload: Workload) -> list[Verdict]:
        """The stored verdicts on kernels and rewritings for a workload's bucket on a device, best
        first, without `raw`."""
        bucket = workload.bucket()
        verdicts = [v for v, _ in self._records(device, bucket.layout) if v.workload == bucket.slug]
        return sorted(verdicts, key=lambda v: v.rank, reverse=True)

    def about(self, device: str, kind: str) -> list[Verdict]:
        """The stored verdicts of another kind (see KINDS), best first."""
        verdicts = [v for v, _ in self._records(device, kind)]
        return sorted(verdicts, key=lambda v: v.rank, reverse=True)

    def of(self, device: str, family: str) -> Iterator[Verdict]:
        """The stored verdicts on a family's workloads, or of another kind (see KINDS), of a
        workload the best first. Each file is read when it is reached; nothing of the family is
        loaded."""
        for name in self._names("devices", device):
            layout, _, ending = name.partition(".")
            if layout.partition("-")[0] == family and ending == "json":
                record = self._read(self._base / "devices" / device / name) or {}
                items = record.get("verdicts")
                for item in items if isinstance(items, list) else ():
                    try:
                        verdict = Verdict.from_json(item, load=False)
                    except (KeyError, TypeError, ValueError, AttributeError):  # see _parsed
                        continue
                    yield verdict

    def publish(self, device: str, verdict: Verdict) -> None:
        """Store a verdict; one for the same kernel, params and versions replaces the old."""
        self.publish_all(device, [verdict])

    def publish_all(self, device: str, verdicts: Iterable[Verdict]) -> None:
        """Store verdicts as `publish` does, each file of a layout written once. Raises
        RegistryError."""
        layouts: dict[str, dict[str, Verdict]] = {}
        for verdict in verdicts:
            layouts.setdefault(_layout(verdict), {})[_key(verdict)] = verdict
        with self._writing(_device_folder(device)) as folder:
            for layout, made in layouts.items():
                self._write(folder, device, layout, made)

    def _write(self, folder: Path, device: str, layout: str, made: Mapping[str, Verdict]) -> None:
        """Put verdicts, by key, into the file of their layout, whose folder is locked."""
        # Records as they were read: what a newer release wrote into them stays.
        read, foreign, more = self._file(folder / f"{layout}.json", layout)
        kept = {_key(old): (old, item) for old, item in read}
        kept |= {key: (verdict, verdict.to_json()) for key, verdict in made.items()}
        before = self._raw(device, layout)
        raw = {old: held for old, held in before.items() if old not in made}
        raw |= {key: records.plain(verdict.raw) for key, verdict in made.items() if verdict.raw}
        if raw or before:
            # First: a record without its samples is whole, samples without one are not.
            text = json.dumps(raw, separators=(",", ":"), allow_nan=False)
            data = gzip.compress(text.encode(), mtime=0)
            write_atomic(folder / f"{layout}.raw.json.gz", data, durable=True)
        ordered = sorted(kept.values(), key=lambda x: (x[0].workload, [-n for n in x[0].rank]))
        items = [*(item for _, item in ordered), *foreign]
        records.write(folder / f"{layout}.json", {**more, "verdicts": items})

    def raw(self, device: str, verdict: Verdict) -> dict[str, Any]:
        """The raw samples and cases of a verdict; {} where there are none."""
        return dict(self._raw(device, _layout(verdict)).get(_key(verdict), {}))

    def _records(self, device: str, layout: str) -> list[tuple[Verdict, dict[str, Any]]]:
        """All verdicts of a layout, each with its record as it was read."""
        if not DEVICE.fullmatch(device):
            return []
        return self._file(self._base / "devices" / device / f"{layout}.json", layout)[0]

    def _file(self, path: Path, layout: str) -> tuple[list[Read], list[Any], dict[str, Any]]:
        """(verdicts, items that this release cannot read, other fields) of a layout's file. What
        was read is kept until the file is another: a model asks for bucket after bucket of it."""
        try:
            now = path.stat()
        except OSError:
            return [], [], {}
        if not self._trusts(path):
            return [], [], {}
        state = now.st_ino, now.st_size, now.st_mtime_ns
        known = self._files.get(path)
        if known is None or known[0] != state:
            known = self._files[path] = state, self._parsed(path, layout)
        return known[1]

    def _parsed(self, path: Path, layout: str) -> tuple[list[Read], list[Any], dict[str, Any]]:
        record = self._read(path)
        if record is None:
            return [], [], {}
        items = record.pop("verdicts", None)
        if not isinstance(items, list):
            self._quarantine(path, "no list of verdicts")
            return [], [], {}
        read: list[Read] = []
        foreign: list[Any] = []
        for item in items:  # each for itself: the checksum holds, so another release wrote it
            try:
                verdict = Verdict.from_json(item)
                if _layout(verdict) != layout:
                    raise ValueError("a verdict of another layout")
                read.append((verdict, item))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.info("%s: a verdict is left out: %s", path, error)
                foreign.append(item)
        return read, foreign, record

    def _raw(self, device: str, layout: str) -> dict[str, Any]:
        """The raw samples of a layout; {} where they are absent or damaged: verdicts do without."""
        path = self._base / "devices" / device / f"{layout}.raw.json.gz"
        if not self._trusts(path):
            return {}
        try:
            packed = io.BytesIO(read_regular(path, MAX_RAW_BYTES))
            with gzip.open(packed) as file:
                data = file.read(MAX_RAW_BYTES + 1)
            raws = json.loads(data) if len(data) <= MAX_RAW_BYTES else {}
        except (OSError, EOFError, ValueError, zlib.error, RecursionError):
            return {}
        known = raws.items() if isinstance(raws, dict) else ()
        return {key: raw for key, raw in known if isinstance(raw, dict)}

    def workloads(self, device: str) -> list[Bucket]:
        """The buckets with stored verdicts on a device."""
        slugs = {
            verdict.workload
            for name in self._names("devices", device)
            if name.partition("-")[0] in ops.FAMILIES and name.endswith(".json")
            for verdict, _ in self._records(device, name.removesuffix(".json"))
        }
        return [ops.parse(slug).bucket() for slug in sorted(slugs)]

    def devices(self) -> list[str]:
        """The devices with stored verdicts."""
        return [name for name in self._names("devices") if DEVICE.fullmatch(name)]

    # Kernels that ended a worker process

    def poisoned(self, device: str) -> dict[str, str]:
        """Kernels that crashed, hung or faulted a worker on this device: id -> reason."""
        record = self._read(self._base / "devices" / device / "poison.json")
        kernels = record.get("kernels") if record else None
        if not isinstance(kernels, dict):
            return {}
        return {str(key): str(value) for key, value in kernels.items()}

    def poison(self, device: str, kernel: str, reason: str) -> None:
        """Remember that a kernel must not run on this device again."""
        with self._writing(_device_folder(device)) as folder:
            known = self.poisoned(device)
            records.write(folder / "poison.json", {"kernels": {**known, kernel: reason}})

    # Workloads that the gate did not decide at first use: no time, or trouble of the machine

    def timeouts(self, device: str, workload: Workload, stamp: Mapping[str, Any]) -> int:
        """How many processes gated a workload's bucket in vain under a fingerprint."""
        count = self._in_vain(device, workload, stamp).get("count")
        return count if isinstance(count, int) else 0

    def trouble(self, device: str, workload: Workload, stamp: Mapping[str, Any]) -> str:
        """What the machine said in the last of them, "" where time was too short."""
        return str(self._in_vain(device, workload, stamp).get("trouble", ""))

    def _in_vain(
        self, device: str, workload: Workload, stamp: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        record = self._read(self._base / "devices" / device / "timeouts.json")
        known = record.get(_timeout_key(workload, stamp)) if record else None
        return known if isinstance(known, dict) else {}

    def timed_out(
        self, device: str, workload: Workload, stamp: Mapping[str, Any], trouble: str = ""
    ) -> None:
        """Count one more; `trouble` says what the machine said, where it was not the time."""
        with self._writing(_device_folder(device)) as folder:
            record = self._read(folder / "timeouts.json") or {}
            count = self.timeouts(device, workload, stamp) + 1
            entry: dict[str, Any] = {"count": count}
            if trouble:
                entry["trouble"] = trouble
            record[_timeout_key(workload, stamp)] = entry
            records.write(folder / "timeouts.json", record)

    # Host checks: they belong to the kernel and travel with it, outside its hash

    def host_checks(self, id: str) -> list[dict[str, Any]]:
        """The stored host checks of a kernel, each with its params and metalhost's version."""
        if not KERNEL_ID.fullmatch(id):
            return []
        record = self._read(self._base / "kernels" / id / "host.json")
        checks = record.get("checks") if record else None
        return [c for c in checks if isinstance(c, dict)] if isinstance(checks, list) else []

    def add_host_check(self, id: str, check: Mapping[str, Any]) -> None:
        """Store a host check; one for the same params and workload replaces the old."""
        with self._writing("kernels") as folder:
            if not (folder / id).is_dir():
                raise RegistryError(f"{self.root}: no kernel {id}")
            kept = [
                old
                for old in self.host_checks(id)
                if (old.get("params"), old.get("workload"))
                != (check.get("params"), check.get("workload"))
            ]
            records.write(folder / id / "host.json", {"checks": [*kept, dict(check)]})

    # One gate at a time

    @contextlib.contextmanager
    def gating(self, device: str, workload: Workload, seconds: float) -> Iterator[bool]:
        """Hold the right to gate a workload; False where another process held it for `seconds`.

        Where nothing can be written there is no one to share with: True.
        """
        try:
            with self._folder(_device_folder(device)) as folder:
                lock = filelock.FileLock(folder / f".{workload.bucket().slug}.lock")
                lock.acquire(timeout=seconds)
        except filelock.Timeout:
            yield False
            return
        except OSError:
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def clear(self, device: str | None = None) -> int:
        """Remove the verdicts of a device, or the whole registry; returns the files removed."""
        if self.refusal:
            raise RegistryError(self.refusal)
        target = self._base / "devices" / device if device else self._base
        if device is not None and not DEVICE.fullmatch(device):
            return 0
        removed = sum(1 for path in target.rglob("*") if path.is_file())
        try:
            if target.exists():
                shutil.rmtree(target)
        except OSError as error:
            raise RegistryError(f"{target}: {error.strerror or error}") from None
        self._kernels.clear()
        self._files.clear()
        return removed

    def _read(self, path: Path) -> dict[str, Any] | None:
        """A record whose checksum holds; None where there is none, it was moved aside, or another
        user may have written it."""
        if not self._trusts(path):
            return None
        try:
            return records.read(path)
        except OSError:
            return None
        except ValueError as error:
            self._quarantine(path, str(error))
            return None

    def _quarantine(self, path: Path, reason: str) -> None:
        if path in self._damaged:
            return
        self._damaged.add(path)
        done = "moved aside" if self.writable else "not used"
        why = printable(reason[:200])
        log.warning("%s is damaged (%s): %s, calls run on MLX's own", path, why, done)
        if not self.writable:
            return
        with contextlib.suppress(OSError):
            aside = self._base / "quarantine"
            aside.mkdir(parents=True, exist_ok=True)
            target = Path(tempfile.mkdtemp(prefix=f"{path.name[:80]}-", dir=aside))
            path.rename(target / path.name)

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        if self.refusal or not self.writable:
            raise RegistryError(self.refusal or f"{self.root} is read-only")
        folder = self._base / name
        _make_folder(folder)
        if reason := self._distrust(folder):
            raise RegistryError(reason)
        yield folder

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """The folder `name`, made, under its lock. Raises RegistryError."""
        try:
            with (
                self._folder(name) as folder,
                filelock.FileLock(folder / ".lock", timeout=LOCK_SECONDS),
            ):
                _clean(folder)
                yield folder
        except filelock.Timeout:
            raise RegistryError(f"{self._base / name}: locked by another process") from None
        except RegistryError:
            raise
        except OSError as error:
            raise RegistryError(f"{self._base / name}: {error.strerror or error}") from None


def _open_above(root: Path) -> str:
    """Why the folders that a root lies in cannot be trusted, "" where they can: whoever may rename
    one decides what runs here. In a sticky folder (/tmp) nobody renames what is another's."""
    try:
        for folder in root.resolve().parents:
            mode = folder.stat().st_mode if folder.exists() else 0
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return f"{folder} can be written by every user of this machine (chmod o-w)"
    except (OSError, RuntimeError):  # it cannot be looked at, and so not read
        return ""
    return ""


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _owner(path: Path) -> tuple[int, ...]:
    """The owner's number, where there is one: of a package's files that is whoever installed it,
    and root in a container finds its user's folder."""
    try:
        return (path.stat().st_uid,)
    except OSError:
        return ()


def _tell(reason: str) -> None:
    if reason and reason not in _told:
        _told.add(reason)
        log.warning("%s: calls run on MLX's own", reason)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, closed to others whatever the umask."""
    for path in reversed([folder, *folder.parents]):
        if not path.is_dir():
            path.mkdir(mode=0o755, exist_ok=True)


def _clean(folder: Path) -> None:
    """Remove what writers left that were killed. The folder is locked: no temporary file in it is
    in use. A lock that nobody touched for long is nobody's."""
    for left in [*folder.glob(".new-*"), *folder.glob("*/.new-*")]:
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()
    for lock in folder.glob(".*.lock"):
        with contextlib.suppress(OSError):
            if time.time() - lock.lstat().st_mtime > ABANDONED_SECONDS:
                lock.unlink()


def _device_folder(device: str) -> str:
    if not DEVICE.fullmatch(device):
        raise RegistryError(f"{device[:80]!r} is no device")
    return f"devices/{device}"


def _timeout_key(workload: Workload, stamp: Mapping[str, Any]) -> str:
    versions = records.checksum(binding(stamp))[:16]
    return f"{workload.bucket().slug} {versions}"


def _layout(verdict: Verdict) -> str:
    """Name of the file that a verdict lies in. Raises WorkloadError."""
    if verdict.kind not in ("kernel", "rewriting"):
        return verdict.kind
    bucket = ops.parse(verdict.workload).bucket()
    if bucket.slug != verdict.workload:
        raise WorkloadError(f"{verdict.workload} is no bucket")
    return bucket.layout


def _key(verdict: Verdict) -> str:
    """What a verdict is about, and on which versions: equal for one that replaces another."""
    about = [verdict.kind, verdict.kernel, sorted(verdict.params.items()), verdict.workload]
    return records.checksum({"about": about, "binding": binding(verdict.fingerprint)})[:16]
