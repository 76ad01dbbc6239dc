from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.core.mount import Mount
from lamina.linux import fsverity, loop, mountapi, openat2, probes
from lamina.linux.directory import call_in_directory
from lamina.linux.fallocate import punch_hole
from lamina.linux.libc import encoded
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS
from lamina.linux.priority import become_idle
from lamina.linux.process import become_io_flusher
from lamina.linux.reflink import clone_file, copy_data
from lamina.linux.sync import syncfs
from lamina.linux.userns import in_user_namespace, new_user_namespace
from lamina.mount import mount_all, unmount_all

MIB = 1 << 20


@pytest.mark.parametrize(
    ("structure", "size"),
    [
        (openat2.OpenHow, 24),
        (mountapi.MountAttr, 32),
        (loop.LoopInfo64, 232),
        (loop.LoopConfig, 304),
    ],
)
def test_sizes_of_structures(structure: type[ctypes.Structure], size: int) -> None:
    assert ctypes.sizeof(structure) == size


def test_requests_of_fsverity_have_the_sizes_of_what_they_take() -> None:
    assert fsverity.FS_IOC_ENABLE_VERITY >> 16 & 0x3FFF == fsverity.ENABLE_ARG.size == 128
    assert fsverity.FS_IOC_MEASURE_VERITY >> 16 & 0x3FFF == fsverity.DIGEST.size - 32 == 4


def test_a_nul_byte_in_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL byte"):
        encoded("/etc\0/passwd")


def test_openat2_resolves_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("inside")
    (tmp_path / "link").symlink_to("/etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    try:
        for path in ("/etc/passwd", "../../etc/passwd", "link"):
            fd = openat2.openat2(path, os.O_RDONLY, dir_fd=root, resolve=RESOLVE_IN_ROOT)
            with open(fd, "rb") as file:
                assert file.read() == b"inside"
                assert not os.get_inheritable(fd)
        for path, resolve, number in (
            ("../x", RESOLVE_BENEATH, errno.EXDEV),
            ("link", RESOLVE_NO_SYMLINKS, errno.ELOOP),
            ("missing", RESOLVE_IN_ROOT, errno.ENOENT),
        ):
            with pytest.raises(OSError) as caught:
                openat2.openat2(path, os.O_RDONLY, dir_fd=root, resolve=resolve)
            assert (caught.value.errno, caught.value.filename) == (number, path)
    finally:
        os.close(root)


def test_openat2_makes_files_with_their_mode(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_PATH)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(openat2.openat2("new", flags, dir_fd=root, mode=0o640, resolve=RESOLVE_BENEATH))
    os.close(root)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def holed(path: Path) -> Path:
    with path.open("wb") as file:
        for offset in (0, 3 * MIB, 9 * MIB + 123):
            os.pwrite(file.fileno(), os.urandom(5000), offset)
        file.truncate(20 * MIB + 7)
    return path


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP])
def test_copies_keep_bytes_and_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    def refuse(*_: object) -> int:
        assert refusal is not None
        raise OSError(refusal, "refused")

    if refusal is not None:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    source, copy = holed(tmp_path / "source"), tmp_path / "copy"
    with source.open("rb") as reader, copy.open("wb") as writer:
        copy_data(reader.fileno(), writer.fileno())
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks <= source.stat().st_blocks < 200


def test_copies_across_filesystems(tmp_path: Path) -> None:
    source, copy = holed(tmp_path / "source"), Path("/dev/shm", f"lamina-test-{os.getpid()}")
    try:
        with source.open("rb") as reader, copy.open("wb") as writer:
            copy_data(reader.fileno(), writer.fileno())
        assert copy.read_bytes() == source.read_bytes()
        assert copy.stat().st_blocks < 200
    finally:
        copy.unlink(missing_ok=True)


def test_copies_of_nothing_and_of_a_lone_hole(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    for size in (0, MIB):
        source.touch()
        os.truncate(source, size)
        with source.open("rb") as reader, copy.open("wb") as writer:
            copy_data(reader.fileno(), writer.fileno())
        assert (copy.stat().st_size, copy.stat().st_blocks) == (size, 0)


def test_other_errors_of_a_copy_rise(tmp_path: Path) -> None:
    source = holed(tmp_path / "source")
    with source.open("rb") as reader, source.open("rb") as not_writable, pytest.raises(OSError):
        copy_data(reader.fileno(), not_writable.fileno())


@pytest.mark.reflink
def test_clone(reflink_dir: Path) -> None:
    source, copy = holed(reflink_dir / "source"), reflink_dir / "copy"
    with source.open("rb") as reader, copy.open("wb") as writer:
        clone_file(reader.fileno(), writer.fileno())
    assert copy.read_bytes() == source.read_bytes()


def test_syncfs_and_its_error(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    syncfs(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syncfs(descriptor)


def test_idle_priority_is_the_threads_own() -> None:
    seen: list[tuple[int, str]] = []

    def work() -> None:
        become_idle()
        own = str(threading.get_native_id())
        said = subprocess.run(["ionice", "-p", own], capture_output=True, text=True).stdout
        seen.append((os.sched_getscheduler(0), said.strip()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(os.SCHED_IDLE, "idle")]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


def slow_getcwd() -> str:
    time.sleep(0.01)
    return os.getcwd()


def test_calls_in_other_directories_run_at_once_and_alone(tmp_path: Path) -> None:
    names = [str(number) for number in range(20)]
    for name in names:
        (tmp_path / name).mkdir()

    def seen(name: str) -> str:
        descriptor = os.open(tmp_path / name, os.O_PATH)
        try:
            return call_in_directory(descriptor, slow_getcwd)
        finally:
            os.close(descriptor)

    before = os.getcwd()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(seen, names)) == [str(tmp_path / name) for name in names]
    assert os.getcwd() == before


def test_errors_of_calls_in_other_directories_rise(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(FileNotFoundError):
            call_in_directory(descriptor, lambda: os.stat("missing"))
    finally:
        os.close(descriptor)


def user_namespace(proc: Path) -> int:
    try:
        return (proc / "ns/user").stat().st_ino
    except OSError:
        return 0  # no process, or gone meanwhile, or not ours to look at


@pytest.mark.root
@pytest.mark.userns
def test_new_user_namespace_has_its_maps_and_no_process() -> None:
    userns = new_user_namespace("0 100000 10\n10 5000 1\n", "0 7 1\n")
    try:
        enter = [f"--user=/proc/{os.getpid()}/fd/{userns}", "cat"]
        for name, wanted in (("uid_map", "0 100000 10 10 5000 1"), ("gid_map", "0 7 1")):
            argv = ["nsenter", "--preserve-credentials", *enter, f"/proc/self/{name}"]
            done = subprocess.run(argv, capture_output=True, text=True, check=True)
            assert " ".join(done.stdout.split()) == wanted
        assert os.fstat(userns).st_ino not in map(user_namespace, Path("/proc").iterdir())
    finally:
        os.close(userns)


@pytest.mark.userns
def test_being_in_a_user_namespace() -> None:
    code = "from lamina.linux.userns import in_user_namespace as f; print(f())"
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stdout.strip() == "True"
    assert in_user_namespace() == (
        Path("/proc/self/uid_map").read_text().split()[2] != "4294967295"
    )


def ext4(path: Path) -> Path:
    path.touch()
    os.truncate(path, 8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    return path


def loops_of(image: Path) -> list[str]:
    devices = Path("/dev").glob("loop[0-9]*")
    return [str(device) for device in devices if loop.backing_file(str(device)) == str(image)]


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("options", [("loop",), ("loop", "direct-io"), ("loop", "ro")])
def test_loop_mount_of_ext4_frees_its_device(tmp_path: Path, options: tuple[str, ...]) -> None:
    image, target = ext4(tmp_path / "image"), tmp_path / "target"
    target.mkdir()
    mounts = [Mount("ext4", str(image), "", options)]
    mount_all(mounts, target)
    (device,) = loops_of(image)
    block = Path("/sys/block", Path(device).name)
    assert (block / "loop/autoclear").read_text().strip() == "1"
    assert (block / "loop/dio").read_text().strip() == str(int("direct-io" in options))
    assert (block / "ro").read_text().strip() == str(int("ro" in options))
    assert (target / "lost+found").is_dir()
    unmount_all(mounts, target)
    deadline = time.monotonic() + 5
    while loops_of(image) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loops_of(image)


@pytest.mark.root
@pytest.mark.loop
def test_loop_device_of_a_failed_mount_is_freed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with pytest.raises(Exception, match="mount ext4"):
        mount_all([Mount("ext4", str(image), "", ("loop",))], tmp_path)
    assert not loops_of(image)


@pytest.mark.root
@pytest.mark.loop
def test_loop_devices_taken_at_once_are_all_different(tmp_path: Path) -> None:
    images = [tmp_path / f"image{number}" for number in range(12)]
    for image in images:
        image.write_bytes(bytes(MIB))
    barrier = threading.Barrier(len(images))

    def take(image: Path) -> str:
        with loop.attached(image) as device:
            barrier.wait(30)
            assert loop.backing_file(device.path) == str(image)
            barrier.wait(30)
            return device.path

    with ThreadPoolExecutor(len(images)) as pool:
        assert len(set(pool.map(take, images))) == len(images)


@pytest.mark.root
@pytest.mark.loop
def test_loop_configured_in_steps_as_on_old_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A request that no kernel knows stands in for one that an old kernel does not know.
    monkeypatch.setattr(loop, "LOOP_CONFIGURE", 0x4CFF)
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with loop.attached(image, direct_io=True) as device:
        block = Path("/sys/block", Path(device.path).name, "loop")
        assert (block / "autoclear").read_text().strip() == "1"
        assert (block / "dio").read_text().strip() == "1"


@pytest.mark.root
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("overlay", marks=pytest.mark.overlay),
        pytest.param("overlay_userxattr", marks=pytest.mark.overlay),
        pytest.param("overlay_on_idmapped", marks=[pytest.mark.overlay, pytest.mark.idmap]),
        pytest.param("loop", marks=pytest.mark.loop),
        pytest.param("fuse", marks=pytest.mark.fuse),
    ],
)
def test_probes_find_what_works_and_leave_nothing(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "with:comma,and\\backslash"
    directory.mkdir()
    assert getattr(probes, name)(directory) is None
    assert os.listdir(directory) == []


@pytest.mark.reflink
def test_probe_of_shared_blocks(reflink_dir: Path) -> None:
    assert probes.reflink(reflink_dir) is None
    assert probes.reflink(Path("/dev/shm")) == "Operation not supported"


@pytest.mark.root
@pytest.mark.parametrize("name", ["overlay", "loop", "reflink"])
def test_probes_give_a_reason(name: str) -> None:
    assert getattr(probes, name)(Path("/proc")) == "No such file or directory"


@pytest.mark.root
@pytest.mark.overlay
def test_probe_of_a_filesystem_that_cannot_be_an_upper_directory(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("lower", "upper", "work", "target")]
    for name in names:
        name.mkdir()
    lower, upper, work, target = names
    options = (f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}")
    mounts = [Mount("overlay", "overlay", "", options)]
    mount_all(mounts, target)
    assert probes.overlay(target) == "Invalid argument"
    assert list(target.iterdir()) == []
    unmount_all(mounts, target)


def test_a_thread_becomes_an_io_flusher_and_no_other() -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    get_io_flusher = 58  # PR_GET_IO_FLUSHER
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)

    def become() -> int:
        become_io_flusher()
        return int(prctl(get_io_flusher, 0, 0, 0, 0))

    with ThreadPoolExecutor(1) as pool:
        if capabilities >> 24 & 1:  # CAP_SYS_RESOURCE
            assert pool.submit(become).result() == 1
            assert prctl(get_io_flusher, 0, 0, 0, 0) == 0
        else:
            assert isinstance(pool.submit(become).exception(), PermissionError)


def test_a_hole_that_is_punched_is_zeros_and_takes_no_room(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
        before = os.fstat(file.fileno()).st_blocks
        punch_hole(file.fileno(), 1000, MIB // 2)
        found = os.fstat(file.fileno())
        assert (found.st_size, found.st_blocks < before) == (MIB, True)
        file.seek(0)
        assert file.read() == b"x" * 1000 + bytes(MIB // 2) + b"x" * (MIB // 2 - 1000)
