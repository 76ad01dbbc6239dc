"""The directory of a writable device: what is in it, and making it.

`device.json` says how large it is and what lies below, `data` has what was written, `map` says
which sectors that are. The process that uses it holds a lock on `lock`. `data` is the data file of
an overlaybd layer that is written to (sparse): a header of 4096 bytes, then the device. Discards
are not in it, only in `map`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from lamina.errors import AlreadyExists, FormatError, InvalidArgument, NotFound
from lamina.formats.lsmt.layout import SECTOR, SLOT, About, Flags, pack_record
from lamina.lazy.layer import LayerLock
from lamina.lazy.writable.sector_map import SectorMap

DEVICE, DATA, MAP = "device.json", "data", "map"
DATA_START = SLOT
"""Byte of `data` at which the device begins."""
MAX_SIZE = 1 << 46
"""Bytes of a device: 64 TiB, which needs as many bytes of addresses as it has sectors."""
_VERSION = 1
_NEW_PREFIX = "new-"


class DeviceFile(msgspec.Struct, frozen=True):
    """The contents of `device.json`.

    Attributes:
        size: bytes of the device.
        lower: directory of the lazy layer below; "" for none, and zeros.
        factory: `module:callable` that makes a `Filler` of it.
        version: of the directory's layout.
    """

    size: int
    lower: str = ""
    factory: str = ""
    version: int = _VERSION


def create_writable(
    directory: Path, size: int, *, lower: Path | None = None, factory: str = ""
) -> None:
    """Make the directory of a device that nothing was written to; whole or not at all.

    Nothing is synced before the first flush.

    Args:
        directory: which is made; beside it a `new-*` may be left by a kill.
        size: bytes of the device, whole sectors of 512; may be more than what lies below has.
        lower: the absolute directory of a lazy layer whose cache file is a device, which has to
            stay as long as this one; None for zeros.
        factory: `module:callable` that makes a `Filler` of `lower`, in the worker.

    Raises:
        AlreadyExists: there is one.
        InvalidArgument: the size cannot be had.
        OSError: it cannot be written.
    """
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        hint = f"it must be whole sectors of {SECTOR} bytes, and {MAX_SIZE} bytes at most"
        raise InvalidArgument("create a writable device of size", size, hint=hint)
    if directory.exists():
        raise AlreadyExists("create writable device", directory)
    new = directory.with_name(f"{_NEW_PREFIX}{os.urandom(8).hex()}")
    new.mkdir(mode=0o700)
    try:
        _fill(new, DeviceFile(size, str(lower or ""), factory if lower else ""))
        new.rename(directory)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and directory.exists():
            raise AlreadyExists("create writable device", directory) from error
        raise


def read_device(directory: Path) -> DeviceFile:
    """Return what `device.json` says.

    Raises:
        NotFound: there is none.
        FormatError: it is damaged, or of another version.
    """
    path = directory / DEVICE
    try:
        device = msgspec.json.decode(path.read_bytes(), type=DeviceFile)
    except FileNotFoundError as error:
        raise NotFound("open writable device", directory) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        expected = "the description of a device"
        raise FormatError(DEVICE, 0, expected=expected, got=str(error), source=path) from error
    if device.version != _VERSION:
        expected, got = f"version {_VERSION}", f"{device.version}"
        raise FormatError(DEVICE, 0, expected=expected, got=got, source=path)
    return device


def sync_directory(directory: Path) -> None:
    """Have the directory and its names survive a power loss.

    Raises:
        OSError: something could not be written.
    """
    for path in (directory / DEVICE, directory, directory.parent):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _fill(new: Path, device: DeviceFile) -> None:
    (new / DEVICE).write_bytes(msgspec.json.encode(device) + b"\n")
    with (new / DATA).open("xb") as data:
        about = About(virtual_size=device.size)
        data.write(pack_record(about, Flags.HEADER | Flags.DATA | Flags.SPARSE))
        data.truncate(DATA_START + device.size)
    with (new / MAP).open("xb") as map:
        SectorMap.create(map.fileno(), device.size // SECTOR)
    for name in (DATA, MAP, DEVICE):
        (new / name).chmod(0o600)
    LayerLock.create(new).release()
