"""What the machine gives: versions, files, disk."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.doctor.finding import Finding, graded
from pipeline.errors import Invalid
from pipeline.settings import Settings
from pipeline.stores.extensions import extension_path

FILES_WARN, FILES_BAD = 1024, 256  # of the limit on open files: connections of the API, handles of the lake
DISK_WARN, DISK_BAD = 0.9, 0.97  # of the disk in use
DISK_FREE_BAD_BYTES = 1 << 30


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings on this host. They hold for it alone: another role's host has its own."""
    yield _versions()
    yield _open_files()
    yield _disk(settings.data_dir, "choose another --data")
    lake = Path(settings.lake)
    if "://" not in settings.lake and _existing(lake).stat().st_dev != _existing(settings.data_dir).stat().st_dev:
        yield _disk(lake, "choose another PIPELINE_LAKE_URL")


def _versions() -> Finding:
    names = ("polars", "duckdb", "deltalake", "redis")
    told = ", ".join([f"Python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in names)])
    try:
        extension_path()
    except Invalid as error:
        return Finding("versions", "bad", str(error))
    return Finding("versions", "ok", told)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Finding("machine", "ok", "open files: no limit")
    remedy = f"`ulimit -n {FILES_WARN * 4}` before the start (the hard limit is {'none' if hard == resource.RLIM_INFINITY else hard})"
    return graded("machine", -soft, -FILES_WARN + 1, -FILES_BAD + 1, f"open files: at most {soft}", remedy)


def _existing(folder: Path) -> Path:
    """The folder, or the closest one above it that is there: where it would be made."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _disk(folder: Path, elsewhere: str) -> Finding:
    usage = shutil.disk_usage(_existing(folder))
    used = 1.0 if usage.free < DISK_FREE_BAD_BYTES else 1 - usage.free / usage.total
    text = f"disk of {folder}: {usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free"
    return graded("disk", used, DISK_WARN, DISK_BAD, text, f"make room, lower PIPELINE_RETENTION_DAYS, or {elsewhere}")
