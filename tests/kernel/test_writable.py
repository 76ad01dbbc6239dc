"""Writable devices: FUSE, a loop device on it, and ext4 on that."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lamina.errors import DataLoss, FailedPrecondition, NotFound
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.reader import open_layer
from lamina.formats.lsmt.stack import Stack, export_image
from lamina.formats.lsmt.writer import image_extents, write_layer
from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.writable import SLOT_COUNT, SLOT_SIZE, WritableGate
from lamina.lazy.slots import new_memory
from lamina.lazy.sources.file import FileSource
from lamina.lazy.writable.device import WritableDevice
from lamina.lazy.writable.directory import create_writable
from lamina.lazy.writable.sealing import seal_writable
from lamina.linux import fuse, mountapi
from lamina.linux.fstrim import trim_filesystem
from lamina.linux.loop import attached
from lamina.mount.unmounting import unmount_recursive
from tests.kernel.test_lazy_failing_disk import ROOM, failing_disk
from tests.lazy_filler import FACTORY
from tests.lazy_layers import ALONE, make_layer
from tests.lazy_layers import FACTORY as CACHE_FACTORY
from tests.lazy_root import SECONDS, Lazy, attempts
from tests.trees import describe

MIB = 1 << 20
SIZE = 96 * MIB
BLOCK = 4096

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.loop]


class Devices(Lazy):
    """A root with its worker, and writable devices."""

    def below(self, name: str = "lower", **files: str) -> Path:
        """Make a lazy layer that is a device with ext4, and some files in that."""
        image = self.root / "image"
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(("mkfs.ext4", "-q", image), check=True)
        with self.mounted(image) as at:
            _plant(at / "below")
        layer = self.layer(name, b"", **files)
        shutil.move(image, layer / "source")
        return layer

    def device(self, lower: Path | None = None, name: str = "device") -> Path:
        directory = self.root / name
        create_writable(directory, SIZE, lower=lower, factory=FACTORY)
        return directory

    def serve(self, directory: Path) -> Path:
        return self.worker.add_writable(directory)

    @contextmanager
    def mounted(self, file: Path, *, direct_io: bool = False) -> Iterator[Path]:
        at = self.root / f"at-{os.urandom(4).hex()}"
        at.mkdir()
        with attached(file, direct_io=direct_io) as device:
            mountapi.mount(device.path, at, "ext4", 0)
        try:
            yield at
        finally:
            _unmount(at)
            at.rmdir()


@pytest.fixture
def devices(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Devices]:
    """A root with its worker; with the parameter "hasty", the worker ends when it may."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = Devices(tmp_path, hasty=getattr(request, "param", "") == "hasty")
    yield found
    found.kill_all()
    unmount_recursive(tmp_path)


hasty = pytest.mark.parametrize("devices", ["hasty"], indirect=True)


def _unmount(at: Path) -> None:
    for _ in attempts():
        if not subprocess.run(("umount", at), stderr=subprocess.DEVNULL).returncode:
            return
    subprocess.run(("umount", at), check=True)


def _plant(directory: Path) -> None:
    directory.mkdir()
    for number in range(12):
        (directory / str(number)).write_bytes(random.randbytes(random.randrange(MIB)))
    (directory / "link").symlink_to("0")
    (directory / "deep").mkdir()
    os.link(directory / "1", directory / "deep/1")


def _check_filesystem(file: Path) -> None:
    done = subprocess.run(("e2fsck", "-fn", file), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def _store(path: Path, data: bytes, *, sync: bool = True) -> None:
    with path.open("wb") as file:
        file.write(data)
        if sync:
            os.fsync(file.fileno())


def _write(path: Path, data: bytes, at: int = 0) -> None:
    """Write into a file, which is not made shorter before."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        assert file.write(data) == len(data)


def _write_direct(fd: int, data: bytes, at: int) -> None:
    page = mmap.mmap(-1, len(data))
    page[:] = data
    assert os.pwritev(fd, [page], at) == len(data)


def _read_direct(fd: int, at: int) -> bytes:
    page = mmap.mmap(-1, BLOCK)
    assert os.preadv(fd, [page], at) == BLOCK
    return page[:]


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(fd)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _killing(devices: Devices, times: int) -> Iterator[threading.Event]:
    """Kill worker after worker; the event says that so many are dead.

    The next ones live: what takes longer than a worker that is killed at once would never be done.
    """
    done, enough = threading.Event(), threading.Event()

    def kill() -> None:
        dead: set[int] = set()
        try:
            while len(dead) < times and not done.wait(random.random() * 0.3):
                pid = devices.worker.status().pid
                if pid not in dead:
                    os.kill(pid, signal.SIGKILL)
                    dead.add(pid)
        finally:
            enough.set()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        try:
            yield enough
        finally:
            done.set()
        killed.result()


@pytest.mark.parametrize("direct_io", [True, False], ids=["direct", "cached"])
@pytest.mark.parametrize("is_above", [True, False], ids=["above", "alone"])
def test_what_is_written_is_there_and_is_in_the_sealed_layer(
    devices: Devices, is_above: bool, direct_io: bool
) -> None:
    lower = devices.below() if is_above else None
    directory = devices.device(lower)
    path = devices.serve(directory)
    if not is_above:
        subprocess.run(("mkfs.ext4", "-q", "-F", path), check=True)
    with devices.mounted(path, direct_io=direct_io) as at:
        _plant(at / "above")
        if is_above:
            (at / "below/3").unlink()
            with (at / "below/4").open("r+b") as file:
                file.seek(100)
                file.write(b"changed")
                os.fsync(file.fileno())
        _drop_caches()
        expected = describe(at)
    with devices.mounted(path, direct_io=direct_io) as at:
        assert describe(at) == expected
    _check_filesystem(path)
    devices.worker.remove(directory)

    layers = []
    if lower is not None:
        source = FileSource(lower / "source")
        with (devices.root / "below").open("wb") as out:
            write_layer(out, image_extents(source), [source], About(virtual_size=SIZE))
        layers.append(open_layer(FileSource(devices.root / "below")))
    sealed = devices.root / "sealed"
    seal_writable(directory, sealed, About(), below=Stack(layers) if layers else None)
    stack = Stack([*layers, open_layer(FileSource(sealed))])
    image = devices.root / "sealed-image"
    with image.open("wb") as out:
        export_image(stack, out)
    _check_filesystem(image)
    with devices.mounted(image) as at:
        assert describe(at) == expected


def test_sectors_and_parts_of_them_are_written(devices: Devices) -> None:
    lower = devices.layer("lower", random.randbytes(MIB))
    model = bytearray((lower / "source").read_bytes() + bytes(SIZE - MIB))
    path = devices.serve(devices.device(lower))
    with attached(path, direct_io=True) as device:
        fd = os.open(device.path, os.O_RDWR | os.O_DIRECT)
        page = mmap.mmap(-1, BLOCK)
        for number in range(200):
            at, length = random.randrange(4096) * 512, random.randrange(1, 9) * 512
            page[:length] = random.randbytes(length)
            assert os.pwritev(fd, [memoryview(page)[:length]], at) == length
            model[at : at + length] = page[:length]
            if number % 50 == 0:
                os.fsync(fd)
        os.close(fd)
    with path.open("r+b", buffering=0) as file:
        for _ in range(100):
            at, data = random.randrange(2 * MIB), random.randbytes(random.randrange(1, 3000))
            file.seek(at)
            file.write(data)
            model[at : at + len(data)] = data
        os.fsync(file.fileno())
    _drop_caches()
    assert path.read_bytes() == model


@pytest.mark.parametrize("direct_io", [True, False], ids=["direct", "cached"])
def test_workers_killed_during_writes_lose_nothing(devices: Devices, direct_io: bool) -> None:
    path = devices.serve(devices.device(devices.below()))
    digests: dict[str, str] = {}
    with devices.mounted(path, direct_io=direct_io) as at:
        old = {file.name: _digest(file) for file in (at / "below").iterdir() if file.is_file()}
        with _killing(devices, 5) as enough:
            number = 0
            while not enough.is_set():
                name, data = f"{number % 40}", random.randbytes(random.randrange(MIB))
                _store(at / name, data, sync=number % 3 > 0)
                digests[name] = hashlib.sha256(data).hexdigest()
                number += 1
            assert digests == {name: _digest(at / name) for name in digests}
        _drop_caches()
        assert digests == {name: _digest(at / name) for name in digests}
        assert old == {name: _digest(at / "below" / name) for name in old}
    _check_filesystem(path)


def test_a_write_of_a_killed_worker_never_comes_back(devices: Devices) -> None:
    """Each thread has blocks that nobody else writes: it has to read what it wrote last."""
    path = devices.serve(devices.device())
    threads, blocks = 8, 4

    def write(thread: int, fd: int, enough: threading.Event) -> int:
        page, back = mmap.mmap(-1, BLOCK), mmap.mmap(-1, BLOCK)
        last = dict.fromkeys(range(blocks), b"")
        version = 0
        while not enough.is_set():
            block = random.randrange(blocks)
            at = (thread * blocks + block) * BLOCK
            if last[block]:
                assert os.preadv(fd, [back], at) == BLOCK
                assert back[:] == last[block]
            version += 1
            page[:] = f"{thread} {block} {version} ".encode().ljust(BLOCK, b"x")
            assert os.pwritev(fd, [page], at) == BLOCK
            last[block] = page[:]
        return version

    with attached(path, direct_io=True) as device:
        fd = os.open(device.path, os.O_RDWR | os.O_DIRECT)
        with _killing(devices, 6) as enough, ThreadPoolExecutor(threads) as pool:
            written = [pool.submit(write, thread, fd, enough) for thread in range(threads)]
            assert all(one.result() > 0 for one in written)
        os.close(fd)


def test_two_of_three_processes_killed_during_writes_lose_nothing(devices: Devices) -> None:
    path = devices.serve(devices.device())
    subprocess.run(("mkfs.ext4", "-q", "-F", path), check=True)
    data = random.randbytes(16 * MIB)
    with devices.mounted(path, direct_io=True) as at:
        family = devices.family()
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit((at / "file").write_bytes, data)
            os.kill(family.holder, signal.SIGKILL)
            os.kill(family.worker, signal.SIGKILL)
            written.result()
        _drop_caches()
        assert (at / "file").read_bytes() == data
        devices.family(gone=(family.holder, family.worker))
    _check_filesystem(path)


def test_when_all_are_killed_it_fails_and_what_was_synced_is_there(devices: Devices) -> None:
    directory = devices.device()
    path = devices.serve(directory)
    subprocess.run(("mkfs.ext4", "-q", "-F", path), check=True)
    data = random.randbytes(3 * MIB)
    with devices.mounted(path, direct_io=True) as at:
        _store(at / "file", data)
        devices.family()
        devices.kill_all()
        with pytest.raises(OSError) as caught:
            os.open(path, os.O_RDWR)
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
        with pytest.raises(OSError):  # EIO or EROFS
            _store(at / "other", data)
    path = devices.serve(directory)
    with devices.mounted(path, direct_io=True) as at:
        assert (at / "file").read_bytes() == data
    _check_filesystem(path)


def test_discards_give_back_room_and_hide_what_lies_below(devices: Devices) -> None:
    lower = devices.below()
    directory = devices.device(lower)
    path = devices.serve(directory)
    data = random.randbytes(20 * MIB)
    with devices.mounted(path) as at:
        shutil.rmtree(at / "below")
        (at / "file").write_bytes(data)
        os.sync()
        room = (directory / "data").stat().st_blocks
        (at / "file").unlink()
        os.sync()
        assert trim_filesystem(at) > len(data)
        assert (directory / "data").stat().st_blocks < room - len(data) // 512 // 2
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_bytes().count(0) > (lower / "source").read_bytes().count(0) + MIB
    devices.worker.remove(directory)
    path = devices.serve(directory)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == content
    _check_filesystem(path)


def test_a_full_disk_is_told_and_loses_nothing(devices: Devices) -> None:
    disk = devices.root / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=24m", "none", disk), check=True)
    directory = devices.device(name="disk/device")
    path = devices.serve(directory)
    subprocess.run(("mkfs.ext4", "-q", "-F", path), check=True)
    first = random.randbytes(4 * MIB)
    with devices.mounted(path, direct_io=True) as at:
        _store(at / "first", first)
        with pytest.raises(OSError) as caught:
            _store(at / "second", random.randbytes(40 * MIB))
        assert caught.value.errno in {errno.ENOSPC, errno.EIO, errno.EROFS}
        _drop_caches()
        assert (at / "first").read_bytes() == first
    with path.open("r+b", buffering=0) as raw, pytest.raises(OSError, match="No space left"):
        for _ in range(SIZE // MIB):
            raw.write(b"y" * MIB)
    subprocess.run(("mount", "-o", "remount,size=200m", disk), check=True)
    devices.worker.remove(directory)
    unmount_recursive(disk)


def test_a_full_disk_leaves_a_filesystem_that_can_be_used_again(devices: Devices) -> None:
    disk = devices.root / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=24m", "none", disk), check=True)
    directory = devices.device(name="disk/device")
    path = devices.serve(directory)
    subprocess.run(("mkfs.ext4", "-q", "-F", path), check=True)
    first, second = random.randbytes(4 * MIB), random.randbytes(40 * MIB)
    with devices.mounted(path, direct_io=True) as at:
        _store(at / "first", first)
        with pytest.raises(OSError):
            _store(at / "second", second)
    subprocess.run(("mount", "-o", "remount,size=200m", disk), check=True)
    subprocess.run(("e2fsck", "-fy", path), stdout=subprocess.DEVNULL)
    with devices.mounted(path, direct_io=True) as at:
        assert (at / "first").read_bytes() == first
        (at / "second").write_bytes(second)
        _drop_caches()
        assert (at / "second").read_bytes() == second
    _check_filesystem(path)
    devices.worker.remove(directory)
    unmount_recursive(disk)


def test_what_the_disk_has_lost_is_neither_flushed_again_nor_sealed(tmp_path: Path) -> None:
    with failing_disk(tmp_path) as disk:
        directory = disk.path / "device"
        create_writable(directory, SIZE)
        with closing(WritableDevice(directory, None)) as device:
            device.write(0, memoryview(b"a" * BLOCK))
            device.flush()
            device.write(MIB, memoryview(random.randbytes(2 * ROOM)))
            for _ in range(2):
                with pytest.raises(OSError, match=r"Input/output|has lost|No space"):
                    device.flush()
            with pytest.raises(OSError, match="has lost"):
                device.write(0, memoryview(bytes(BLOCK)))
        disk.mend()
        device = WritableDevice(directory, None)
        with closing(device), pytest.raises(OSError, match="has lost"):
            device.flush()
        with pytest.raises(DataLoss):
            seal_writable(directory, tmp_path / "sealed", About())


def test_reads_wait_for_what_lies_below_while_writes_go_on(devices: Devices) -> None:
    """With direct I/O, as reading ahead locks pages of the cache that others want to write."""
    lower = devices.layer("lower", random.randbytes(SIZE), hold="")
    source = (lower / "source").read_bytes()
    other = devices.device(name="other")
    one, two = (
        os.open(devices.serve(directory), os.O_RDWR | os.O_DIRECT)
        for directory in (devices.device(lower), other)
    )
    try:
        with ThreadPoolExecutor(48) as pool:
            waiting = [pool.submit(_read_direct, one, at * MIB) for at in range(40, 80)]
            for at in range(8):
                data = random.randbytes(BLOCK)
                for fd in (one, two):
                    pool.submit(_write_direct, fd, data, at * MIB).result(SECONDS)
                    pool.submit(os.fsync, fd).result(SECONDS)
                    found = pool.submit(_read_direct, fd, at * MIB).result(SECONDS)
                    assert found == data
            assert not any(read.done() for read in waiting)
            (lower / "hold").unlink()
            for number, read in enumerate(waiting, 40):
                expected = source[number * MIB : number * MIB + BLOCK]
                assert read.result(SECONDS) == expected
    finally:
        (lower / "hold").unlink(missing_ok=True)
        os.close(one)
        os.close(two)


def test_the_cache_of_a_layer_lies_below(devices: Devices) -> None:
    layer = make_layer([[200_000]] * 40, ALONE)
    cache = layer.create(devices.root / "layer")
    cache.with_suffix(".blob").write_bytes(layer.blob)
    model = bytearray(layer.content) + bytes(SIZE - len(layer.content))
    directory = devices.root / "device"
    create_writable(directory, SIZE, lower=cache, factory=CACHE_FACTORY)
    path = devices.serve(directory)
    for number in range(30):
        at, data = random.randrange(len(layer.content)), random.randbytes(random.randrange(9000))
        _write(path, data, at)
        model[at : at + len(data)] = data
        start = random.randrange(len(layer.content))
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            assert file.read(100_000) == model[start : start + 100_000]
        if number % 10 == 5:
            os.kill(devices.worker.status().pid, signal.SIGKILL)
    devices.worker.wait(cache, SECONDS)
    devices.worker.remove(cache)
    os.kill(devices.worker.status().pid, signal.SIGKILL)
    _drop_caches()
    assert path.read_bytes() == model
    assert [one.directory for one in devices.worker.status().layers] == [str(directory)]


def test_what_lies_below_stays_and_may_be_shared(devices: Devices) -> None:
    lower = devices.layer("lower", random.randbytes(2 * MIB), hold="")
    data = (lower / "source").read_bytes()
    read_only = devices.add(lower, "fuse")
    one, two = devices.device(lower, "one"), devices.device(lower, "two")
    paths = [devices.serve(one), devices.serve(two)]
    with pytest.raises(FailedPrecondition, match="needs"):
        devices.worker.remove(lower)
    with pytest.raises(FailedPrecondition, match="lies below"):
        devices.worker.wait(one, 1)
    (lower / "hold").unlink()
    for number, path in enumerate(paths):
        _write(path, bytes([number]) * 1000)
    assert [path.read_bytes()[:MIB] for path in paths] == [
        bytes([number]) * 1000 + data[1000:MIB] for number in range(2)
    ]
    devices.worker.wait(lower, SECONDS)
    assert read_only.read_bytes() == data
    devices.worker.remove(lower)  # it is complete, and needed as a file only
    assert paths[1].read_bytes() == bytes([1]) * 1000 + data[1000:] + bytes(SIZE - len(data))
    report = devices.worker.status()
    assert [(layer.directory, layer.gate, layer.size) for layer in report.layers] == [
        (str(one), "writable", SIZE),
        (str(two), "writable", SIZE),
    ]


@hasty
def test_nothing_is_left_when_nothing_is_written_to(devices: Devices) -> None:
    lower = devices.layer("lower", random.randbytes(MIB))
    directory = devices.device(lower)
    path = devices.serve(directory)
    assert devices.serve(directory) == path
    devices.worker.wait(lower, SECONDS)
    devices.worker.remove(lower)
    devices.family()
    devices.worker.remove(directory)
    for _ in attempts():
        if not devices.processes():
            break
    assert not devices.processes()
    assert not subprocess.run(
        ("findmnt", "-rno", "TARGET", "-t", "fuse"), capture_output=True, text=True
    ).stdout.count(str(devices.root))
    with pytest.raises(NotFound):
        devices.serve(devices.root / "nothing")


@hasty
def test_a_filesystem_that_is_in_use_keeps_the_other_from_being_given_up(
    devices: Devices,
) -> None:
    """A worker that cannot end goes on with both of its filesystems."""
    layer = devices.layer("layer", random.randbytes(MIB))
    read_only = devices.add(layer, "fuse")
    directory = devices.device()
    devices.serve(directory)
    with _held(read_only.parent):
        devices.worker.remove(layer)
        devices.worker.remove(directory)
        for _ in attempts():
            if not (devices.worker.directory / "writable").is_mount():
                break
        path = devices.serve(directory)
        _write(path, b"x" * BLOCK)
        assert path.read_bytes()[:BLOCK] == b"x" * BLOCK
        assert devices.add(layer, "fuse").read_bytes() == (layer / "source").read_bytes()


def test_a_write_that_was_done_is_answered_and_not_done_again(tmp_path: Path) -> None:
    """A worker is killed after it has noted a write as done, before it has answered it."""
    create_writable(tmp_path / "device", SIZE)
    device = WritableDevice(tmp_path / "device", None)
    connection, memory = fuse.open_device(), new_memory("test", SLOT_SIZE, SLOT_COUNT)
    point = tmp_path / "point"
    point.mkdir()
    fuse.mount(connection, point, "lamina-test", writable=True)
    first = WritableGate(connection, memory, point)
    path = first.add(GatedFile(1, device.data_path, device))
    answered = {"taken": 0}

    def serve_until_written() -> None:
        while answered["taken"] != fuse.WRITE:
            select.select([connection], [], [])
            taken = first._slots.take(connection)
            if taken is None:
                continue
            request = fuse.parse_request(taken[1])
            answered["taken"] = request.opcode
            if request.opcode == fuse.WRITE:
                first._answers.reply = lambda *_: None  # type: ignore[method-assign]
                first._slots.clear = lambda *_: None  # type: ignore[method-assign]
            first._handle(*taken, first._buffer)

    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(_write, path, b"a" * BLOCK)
        pool.submit(serve_until_written).result(SECONDS)
        assert not written.done()
        device.write(0, memoryview(b"b" * BLOCK))  # what came after it
        second = WritableGate(connection, memory, point)
        second.add(GatedFile(1, device.data_path, device))
        second.start()
        written.result(SECONDS)
    buffer = bytearray(BLOCK)
    device.read_into(memoryview(buffer), 0)
    assert buffer == b"b" * BLOCK
    mountapi.umount2(point)
    assert second.wait_for_end(SECONDS)
    device.close()
    os.close(connection)
    os.close(memory)
