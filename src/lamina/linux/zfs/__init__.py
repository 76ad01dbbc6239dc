"""ZFS datasets through libzfs_core: each function is one ioctl on /dev/zfs, libzfs_core.h.

The kernel answers with an errno, where the command `zfs` answers in English, and nothing is
unmounted on the way: `zfs destroy` takes a mounted dataset off its mount point first. A change is
on disk when its function returns. ZFS 2.0 or newer; needs root. Names are bytes to ZFS and ASCII.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from lamina.linux.zfs import library
from lamina.linux.zfs.library import NvList, check

Value = str | int
Properties = Mapping[str, Value]

_FILESYSTEM = 2
"""lzc_dataset_type LZC_DATSET_TYPE_ZFS."""
_NAME_BYTES = 256
"""ZFS_MAX_DATASET_NAME_LEN, with the NUL."""
_INSTRUCTIONS = 100_000_000
_MEMORY_BYTES = 100 << 20
"""The most that the kernel grants a channel program."""


def load() -> None:
    """Load the library, and open /dev/zfs; the others do it by themselves.

    Raises:
        OSError: ENOPKG without the library; what opening /dev/zfs says without the module.
    """
    library.core()


def create(dataset: str, properties: Properties) -> None:
    """Make a filesystem.

    Raises:
        OSError: EEXIST; ENOENT without its parent; ENOSPC, EDQUOT.
    """
    with NvList(properties) as given:
        code = library.core().lzc_create(dataset.encode(), _FILESYSTEM, given, None, 0)
    check(code, dataset)


def clone(dataset: str, snapshot: str, properties: Properties) -> None:
    """Make a filesystem that has the content of a snapshot, and keeps that from being destroyed.

    Raises:
        OSError: EEXIST; ENOENT without the snapshot; ENOSPC also if `refquota` is less than what
            it has; EDQUOT.
    """
    with NvList(properties) as given:
        code = library.core().lzc_clone(dataset.encode(), snapshot.encode(), given)
    check(code, dataset)


def snapshot(name: str) -> None:
    """Make a snapshot, `DATASET@NAME`: all that was written until now, mounted or not.

    Raises:
        OSError: EEXIST; ENOENT without the dataset; ENOSPC, EDQUOT.
    """
    failures = ctypes.c_void_p()
    with NvList({name: True}) as names, NvList({}) as properties:
        code = library.core().lzc_snapshot(names, properties, ctypes.byref(failures))
    library.free(failures)
    check(code, name)


def destroy(dataset: str) -> None:
    """Destroy a filesystem; its blocks are freed in the background.

    Raises:
        OSError: ENOENT; EBUSY if it is mounted, in whatever namespace, or has snapshots; EEXIST if
            there are datasets below it.
    """
    check(library.core().lzc_destroy(dataset.encode()), dataset)


def destroy_snapshot(name: str, *, later: bool) -> None:
    """Destroy a snapshot, which need not be there.

    Args:
        name: `DATASET@NAME`.
        later: if it has clones or is held, it goes with the last of them; nobody waits for it.

    Raises:
        OSError: EBUSY if it is mounted or held, EEXIST if it has clones.
    """
    failures = ctypes.c_void_p()
    with NvList({name: True}) as names:
        code = library.core().lzc_destroy_snaps(names, int(later), ctypes.byref(failures))
    library.free(failures)
    check(code, name)


def promote(dataset: str) -> None:
    """Give a clone the snapshot that it is made from, and the older ones beside that.

    The dataset that had them becomes a clone of this one.

    Raises:
        OSError: EINVAL if it is no clone; EEXIST if it has a snapshot of such a name itself.
    """
    conflict = ctypes.create_string_buffer(_NAME_BYTES)
    code = library.core().lzc_promote(dataset.encode(), conflict, _NAME_BYTES)
    check(code, f"{dataset}@{conflict.value.decode()}" if conflict.value else dataset)


def exists(name: str) -> bool:
    """Tell whether there is a dataset or a snapshot of that name."""
    return bool(library.core().lzc_exists(name.encode()))


def run(program: str, dataset: str, *, changes: bool = False, **arguments: str) -> str | int | None:
    """Run a channel program, zfs-program(8), and return what it returns.

    All that it sees is of one moment, and what it changes is on disk at once, or none of it after
    a crash; an error in the middle takes nothing back.

    Args:
        program: Lua; `...` is a table of the arguments, `dataset` among them.
        dataset: a dataset of the pool that it works on.
        changes: whether it may change anything.
        arguments: the others.

    Raises:
        OSError: ENOENT without the pool; ECHRNG where the program fails, with its message.
    """
    core = library.core()
    function = core.lzc_channel_program if changes else core.lzc_channel_program_nosync
    pool = dataset.partition("/")[0].encode()
    result = ctypes.c_void_p()
    with NvList({"dataset": dataset, **arguments}) as given:
        code = function(
            pool, program.encode(), _INSTRUCTIONS, _MEMORY_BYTES, given, ctypes.byref(result)
        )
    returned = NvList.adopt(result)
    with returned:
        said, _, _traceback = str(returned.get("error") or "").partition("\n")
        check(code, dataset, said=said)
        return returned.get("return")
