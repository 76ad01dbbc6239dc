"""Keeps a test run apart from the machine it runs on, and cleans up after runs that were killed.

A session owns one directory `lamina-test-TOKEN` (its TMPDIR), whose `lock` file it holds as long as
it lives, and as root a private mount namespace with a marker mount of the same name. Whatever a
session makes can so be told from everything else on the machine:

- files and loop devices: below the session's directory
- processes: their mount table has the marker, however they were started
- cgroups: their name has the session's name (see the fixture `container_id`)
- device-mapper devices and ZFS pools: so has theirs

A thing of a session that is no longer alive is a leftover and is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PREFIX = "lamina-test-"
KEPT_VARIABLES = (
    *("PATH", "TERM", "LANG", "USER", "LOGNAME", "SHELL", "CI", "COLUMNS"),
    "DM_DISABLE_UDEV",  # of a machine that has no udev
    "LAMINA_TEST_KILLS",  # how often, in tests/kernel/test_stargz_containers.py
    "LAMINA_ZFS_KERNEL",  # where script/zfs-kernel has put what it made
)
KEPT_PREFIXES = ("PYTHON", "PYTEST_")
SESSION_VARIABLE = "LAMINA_TEST_SESSION"

CLONE_NEWNS = 0x20000
MS_RDONLY = 1
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
LOOP_CLR_FD = 0x4C01
EXIT_SECONDS = 3.0
"""How long a leftover process is given between SIGTERM and SIGKILL."""

Predicate = Callable[[str], bool]

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def mount(source: str, target: str, fstype: str, flags: int) -> None:
    """Mount without options."""
    arguments = (source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(flags), None)
    _check(_libc.mount(*arguments), f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Take the mount off, even a busy one."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def mount_points(process: str = "self") -> list[str]:
    """List a process's mount points in the order they were made."""
    return [fields[4] for fields in _mountinfo(process)]


def _mountinfo(process: str) -> Iterator[list[str]]:
    lines = Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines()
    for line in lines:
        fields = line.split(" ")
        fields[4] = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        yield fields


class Session:
    """This run: its directory, its lock, its mount namespace."""

    def __init__(self, directory: Path, lock: int | None) -> None:
        self.directory = directory
        self.name = directory.name
        self.home = directory / "home"
        self._lock = lock

    @classmethod
    def start(cls, environ: dict[str, str]) -> Session:
        """Begin a session, or join the one that started this process (a pytest-xdist worker)."""
        joined = environ.get(SESSION_VARIABLE)
        if joined:
            session = cls(Path(joined), None)
        else:
            # Not mkdtemp, whose names may begin with `_`: containers are named after it.
            directory = Path(tempfile.gettempdir(), f"{PREFIX}{os.urandom(4).hex()}")
            directory.mkdir(0o700)
            session = cls(directory, _take_lock(directory))
            session.home.mkdir()
        if os.geteuid() == 0:
            session._enter_mount_namespace()
        return session

    @property
    def owner(self) -> bool:
        """Whether this process began the session, so ends it too."""
        return self._lock is not None

    def _enter_mount_namespace(self) -> None:
        try:
            _check(_libc.unshare(CLONE_NEWNS), "unshare")
        except PermissionError:
            return  # uid 0 without CAP_SYS_ADMIN: the probes switch off every test that mounts
        mount("none", "/", "", MS_REC | MS_PRIVATE)
        mount(self.name, str(self.home), "tmpfs", 0)

    def scrub_environment(self) -> None:
        """Drop every variable that could change a result, and everything personal."""
        for name in list(os.environ):
            if name not in KEPT_VARIABLES and not name.startswith(KEPT_PREFIXES):
                del os.environ[name]
        os.environ[SESSION_VARIABLE] = str(self.directory)
        os.environ["HOME"] = str(self.home)
        os.environ["TMPDIR"] = str(self.directory)
        os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
        os.environ["TZ"] = "UTC"
        tempfile.tempdir = str(self.directory)
        os.umask(0o022)

    def end(self) -> None:
        """Remove whatever this session left, then its directory."""
        if self._lock is None:
            return
        stop_processes(_processes(lambda name: name == self.name))
        for target in reversed(mount_points()):
            if Path(target).is_relative_to(self.directory):
                unmount(target)
        remove_devices(lambda name: _session_of_device(name) == self.name)
        _destroy_pools(lambda name: name == self.name)
        _detach_loops(lambda name: name == self.name)
        _remove_cgroups(lambda name: name == self.name)
        _remove_directory(self.directory)
        os.close(self._lock)
        self._lock = None


def _take_lock(directory: Path) -> int:
    """Lock first and name it `lock` second, so that no sweeper ever sees it unlocked."""
    nascent = directory / "lock.new"
    descriptor = os.open(nascent, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    nascent.rename(directory / "lock")
    return descriptor


def _alive(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True  # being made, or being removed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sweep() -> None:
    """Remove what killed sessions of this user left behind."""
    base = Path(tempfile.gettempdir())
    mine = [path for path in base.glob(PREFIX + "*") if path.lstat().st_uid == os.geteuid()]
    alive = {path.name for path in mine if path.is_dir() and _alive(path)}
    dead = [path for path in mine if path.is_dir() and path.name not in alive]
    names = {path.name for path in dead}
    stop_processes(_processes(names.__contains__))
    remove_devices(lambda name: _session_of_device(name) in names)
    _destroy_pools(names.__contains__)
    _detach_loops(names.__contains__)
    _remove_cgroups(names.__contains__)
    for path in dead:
        _remove_directory(path)


def _processes(wanted: Predicate) -> Iterator[int]:
    """Find the processes in the mount namespaces of the wanted sessions, ourselves excepted."""
    if os.geteuid() != 0:
        return
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile
            if any(wanted(_marker(fields)) for fields in _mountinfo(entry)):
                yield int(entry)


def _marker(fields: list[str]) -> str:
    return fields[fields.index("-") + 2]


def stop_processes(processes: Iterable[int]) -> None:
    """End processes that nobody waits for: SIGTERM, and SIGKILL for those that stay."""
    left = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + EXIT_SECONDS
        while left and time.monotonic() < deadline:
            left = [process for process in left if runs(process)]
            time.sleep(0.02 if left else 0)


def runs(process: int) -> bool:
    """Whether the process is more than a zombie; a child that has ended is waited for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def device_names() -> list[str]:
    """List the names of all device-mapper devices."""
    names = []
    for path in Path("/sys/block").glob("dm-*/dm/name"):
        with contextlib.suppress(OSError):  # removed meanwhile
            names.append(path.read_text().strip())
    return names


def remove_devices(wanted: Predicate) -> None:
    """Remove the device-mapper devices of the wanted names, those on top of others first.

    Devices in use stay.
    """
    while names := [name for name in device_names() if wanted(name)]:
        removed = [name for name in names if _dmsetup_remove(name)]
        if not removed:
            return


def _dmsetup_remove(name: str) -> bool:
    argv = ("dmsetup", "remove", name)
    return subprocess.run(argv, stderr=subprocess.DEVNULL).returncode == 0


def _session_of_device(name: str) -> str:
    return "-".join(name.split("-")[:3]) if name.startswith(PREFIX) else ""


def _destroy_pools(wanted: Predicate) -> None:
    if not Path("/sys/module/zfs").exists() or shutil.which("zpool") is None:
        return
    argv = ("zpool", "list", "-H", "-o", "name")
    for name in subprocess.run(argv, capture_output=True, text=True).stdout.split():
        if wanted(_session_of_device(name)):
            subprocess.run(("zpool", "destroy", "-f", name), stderr=subprocess.DEVNULL)


def _detach_loops(wanted: Predicate) -> None:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            path = backing.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if any(map(wanted, path.split("/"))):
            with open(f"/dev/{backing.parts[3]}", "rb") as device:
                fcntl.ioctl(device, LOOP_CLR_FD)


def _remove_cgroups(wanted: Predicate) -> None:
    found = [
        path
        for path, _, _ in os.walk("/sys/fs/cgroup")
        if any(wanted(_session_prefix(part)) for part in path.split("/"))
    ]
    for path in sorted(found, reverse=True):
        with contextlib.suppress(OSError):
            stop_processes(map(int, Path(path, "cgroup.procs").read_text().split()))
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _session_prefix(name: str) -> str:
    """Return the session part of a container's name, `lamina-test-TOKEN-NUMBER`."""
    return name.rpartition("-")[0] if name.startswith(PREFIX) else ""


def _remove_directory(directory: Path) -> None:
    """Delete a session's directory; never through a mount, which could lead anywhere."""
    if any(Path(point).is_relative_to(directory) for point in mount_points()):
        return
    shutil.rmtree(directory, ignore_errors=True)
