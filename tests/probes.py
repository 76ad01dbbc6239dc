"""What this machine can do, found out by doing it; one probe per marker of pyproject.toml.

A probe returns "" or the reason why not. The probes run the system's own programs, so that a fault
in Lamina shows as a failing test and never as a skipped one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.filesystems import mounted
from tests.isolation import MS_RDONLY, mount, unmount
from tests.vm.xstate import preloading

TIMEOUT = 20.0
FAN_CLASS_PRE_CONTENT = 0x8
FAN_MARK_ADD = 0x1
FAN_PRE_ACCESS = ctypes.c_uint64(0x100000)
AT_FDCWD = -100
GO = Path(__file__).parents[1] / "script/go"
ZFS_KERNEL = Path(__file__).parents[1] / "script/zfs-kernel"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
SUITE = Path(__file__).parent / "containerd-suite"


def _try(*argv: str | Path, cwd: Path | None = None, more: Mapping[str, str] | None = None) -> str:
    """Run a command, with more variables; return "" or what it said last."""
    name = str(argv[0])
    if shutil.which(name) is None:
        return f"{name} is not installed"
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"{name} did not end within {TIMEOUT:.0f} s"
    if done.returncode == 0:
        return ""
    said = done.stdout.strip().splitlines()
    return f"{name}: {said[-1] if said else f'exited with {done.returncode}'}"


def _mounting(argv: tuple[str | Path, ...], *directories: str) -> str:
    """Run a mount command in a directory that has `directories`; the mount point is `at`."""
    with tempfile.TemporaryDirectory() as name:
        for directory in (*directories, "at"):
            Path(name, directory).mkdir()
        reason = _try(*argv, cwd=Path(name))
        if not reason:
            subprocess.run(("umount", "at"), cwd=name, check=True)
        return reason


def root() -> str:
    """Uid 0 is not enough: a container's root may lack CAP_SYS_ADMIN."""
    if os.geteuid() != 0:
        return "not root"
    return _mounting(("mount", "-t", "tmpfs", "none", "at"))


def overlay() -> str:
    options = "lowerdir=lower,upperdir=upper,workdir=work"
    argv = ("mount", "-t", "overlay", "overlay", "-o", options, "at")
    return root() or _mounting(argv, "lower", "upper", "work")


def loop() -> str:
    if reason := root():
        return reason
    with tempfile.NamedTemporaryFile() as backing:
        backing.truncate(1 << 20)
        found = subprocess.run(
            ("losetup", "--find", "--show", backing.name), text=True, capture_output=True
        )
        if found.returncode != 0:
            return found.stderr.strip()
        return _try("losetup", "--detach", found.stdout.strip())


def idmap() -> str:
    argv = ("mount", "--bind", "-o", "X-mount.idmap=b:0:100000:65536", "from", "at")
    return root() or _mounting(argv, "from")


def reflink() -> str:
    """On a filesystem of our own: that of /tmp is anybody's guess."""
    if reason := root() or loop() or _try("mkfs.xfs", "-V"):
        return reason
    with tempfile.TemporaryDirectory() as name, mounted(Path(name), "mkfs.xfs", "-q") as place:
        (place / "source").write_bytes(bytes(4096))
        return _try("cp", "--reflink=always", place / "source", place / "clone")


def btrfs() -> str:
    """On a filesystem of our own, with what the snapshotter needs of the kernel."""
    if reason := root() or loop() or _try("mkfs.btrfs", "--version"):
        return reason
    with tempfile.TemporaryDirectory() as name:
        try:
            with mounted(Path(name), "mkfs.btrfs", "-q") as place:
                return _try("btrfs", "subvolume", "create", place / "one")
        except subprocess.CalledProcessError as error:
            return str(error)


def erofs_utils() -> str:
    return _try("mkfs.erofs", "--help") or _try("fsck.erofs", "--help")


def erofs() -> str:
    """Of a file itself, which mount(8) does not do: it puts a loop device between."""
    if reason := root() or erofs_utils():
        return reason
    with tempfile.TemporaryDirectory() as name:
        image, mount_point = Path(name, "image"), Path(name, "at")
        mount_point.mkdir()
        if reason := _try("mkfs.erofs", "--quiet", image, mount_point):
            return reason
        try:
            mount(str(image), str(mount_point), "erofs", MS_RDONLY)
        except OSError as error:
            return f"{error.strerror}; file-backed mounts need Linux 6.12 or newer"
        unmount(str(mount_point))
        return ""


def fanotify() -> str:
    """Mark a file for pre-content events; no program does it."""
    if reason := root():
        return reason
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(FAN_CLASS_PRE_CONTENT, os.O_RDONLY)
    if group < 0:
        return f"fanotify_init: {os.strerror(ctypes.get_errno())}"
    try:
        with tempfile.NamedTemporaryFile() as file:
            path = file.name.encode()
            if libc.fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, path) < 0:
                return f"fanotify_mark: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(group)
    return ""


def fuse() -> str:
    options = "lowerdir=lower,upperdir=upper,workdir=work"
    return root() or _mounting(("fuse-overlayfs", "-o", options, "at"), "lower", "upper", "work")


def userns() -> str:
    return _try("unshare", "--user", "--map-root-user", "true")


def runtime() -> str:
    if reason := root():
        return reason
    reasons = [_container(name) for name in ("runc", "crun")]
    return "" if "" in reasons else "; ".join(reasons)


def _container(name: str) -> str:
    """Run a container of nothing but a static busybox."""
    busybox = shutil.which("busybox")
    if busybox is None:
        return "busybox-static is not installed"
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory)
        for mount_point in ("bin", "proc", "dev"):
            (bundle / "rootfs" / mount_point).mkdir(parents=True)
        shutil.copy2(busybox, bundle / "rootfs/bin/busybox")
        if reason := _try(name, "spec", cwd=bundle):
            return reason
        config = bundle / "config.json"
        text = config.read_text().replace('"terminal": true', '"terminal": false')
        config.write_text(text.replace('"sh"', '"/bin/busybox","true"'))
        return _try(name, "run", f"{Path(tempfile.gettempdir()).name}-0", cwd=bundle)


def debian() -> str:
    return _try("mmdebstrap", "--version")


def registry() -> str:
    return _try("docker-registry", "--help")


@functools.cache
def device_mapper() -> str:
    """Whether this kernel has thin pools; opening the control node tells, its being there not."""
    if reason := root():
        return reason
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if reason := _try("dmsetup", "version"):
        return reason
    targets = subprocess.run(("dmsetup", "targets"), capture_output=True, text=True, check=True)
    found = "\nthin-pool " in f"\n{targets.stdout}"
    return "" if found else _try("modprobe", "dm-thin-pool")


@functools.cache
def uml() -> str:
    """Boot it and switch it off again."""
    needed = ("linux.uml", "modprobe", "dmsetup", "setpriv", "busybox", "gcc")
    if missing := [name for name in needed if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed; as root: script/bootstrap dev"
    with tempfile.TemporaryDirectory() as name:
        init = Path(name, "init")
        init.write_text("#!/bin/sh\nexec busybox poweroff -f\n")
        init.chmod(0o755)
        hostfs = ("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro")
        directories = (f"uml_dir={name}", f"init={init}")
        console = ("con=null", "con0=null,fd:1")
        more = preloading()
        return _try("linux.uml", "mem=64M", *hostfs, *console, *directories, more=more)


def dm() -> str:
    """Here, or in a virtual machine (tests/vm/replay.py)."""
    here = device_mapper()
    there = here and uml()
    return f"{here}; no virtual machine instead: {there}" if there else ""


@functools.cache
def zfs_module() -> str:
    """Whether this kernel has ZFS, and its tools are there; asked for a pool, they need both."""
    return root() or _try("zpool", "list", "-H")


@functools.cache
def qemu() -> str:
    """The programs, and the kernel; booting it takes as long as many tests do."""
    needed = ("qemu-system-x86_64", "setpriv", "modprobe", "busybox")
    missing = [name for name in (*needed, VIRTIOFSD) if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed; as root: script/bootstrap dev"
    return _try(ZFS_KERNEL, "--cached")


def zfs() -> str:
    """Here, or in a virtual machine (tests/vm/replay.py)."""
    here = zfs_module()
    there = here and qemu()
    return f"{here}; no virtual machine instead: {there}" if there else ""


def containerd() -> str:
    return root() or overlay() or _try("containerd", "--version") or _try("ctr", "--version")


def ctr_remote() -> str:
    return containerd() or _try("ctr-remote", "--version")


def go() -> str:
    """The Go that the suite's go.mod asks for, and the modules; both are fetched where needed."""
    if shutil.which("go") is None:
        return "go is not installed"
    return _try(GO, "-C", SUITE, "list", "-deps", "-test", "./...")


PROBES: dict[str, Callable[[], str]] = {
    probe.__name__: functools.cache(probe)
    for probe in (
        root,
        overlay,
        loop,
        idmap,
        reflink,
        btrfs,
        erofs_utils,
        erofs,
        fanotify,
        fuse,
        userns,
        runtime,
        debian,
        registry,
        containerd,
        ctr_remote,
        uml,
        dm,
        qemu,
        zfs,
        go,
    )
}
