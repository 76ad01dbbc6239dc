from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from lamina.lazy import control
from lamina.lazy.gates.choice import choose_device_gate, choose_gate
from lamina.lazy.served import GateName
from lamina.linux import mountapi
from lamina.mount.unmounting import unmount_recursive
from tests.isolation import mount_points
from tests.lazy_filler import FACTORY, UNIT
from tests.lazy_root import SECONDS, Family, Lazy, attempts

MIB = 1 << 20
GATES = [
    pytest.param("fanotify", marks=pytest.mark.fanotify),
    pytest.param("fuse", marks=pytest.mark.fuse),
]

pytestmark = pytest.mark.root


@pytest.fixture
def lazy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lazy]:
    """A root with its worker; with the parameter "hasty", the worker ends when it may."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = Lazy(tmp_path, hasty=getattr(request, "param", "") == "hasty")
    yield found
    found.kill_all()
    unmount_recursive(tmp_path)


hasty = pytest.mark.parametrize("lazy", ["hasty"], indirect=True)


def _local_units(layer: Path) -> int:
    return (layer / "map").read_bytes().count(1)


def _wait_for_units(layer: Path, count: int) -> None:
    for _ in attempts():
        if _local_units(layer) >= count:
            return
    raise AssertionError(f"{_local_units(layer)} units are local, not {count}")


def _digest(path: Path) -> str:
    """Hash a file in another process, which may be made to wait."""
    done = subprocess.run(("sha256sum", path), capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.split()[0]


@pytest.mark.parametrize("gate", GATES)
def test_reads_maps_and_parallel_reads_are_filled(lazy: Lazy, gate: GateName) -> None:
    data = random.randbytes(8 * MIB + 12345)
    path = lazy.add(lazy.layer("one", data), gate)
    mapped = lazy.add(lazy.layer("two", data), gate)
    parallel = lazy.add(lazy.layer("three", data), gate)
    with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        for start in random.sample(range(0, len(data), 4096), 50):
            assert view[start : start + 10] == data[start : start + 10]
        assert view[:] == data
    assert path.read_bytes() == data

    def read(start: int) -> bool:
        with parallel.open("rb") as file:
            return os.pread(file.fileno(), 300_000, start) == data[start : start + 300_000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, random.sample(range(len(data)), 64)))
    assert parallel.read_bytes() == data


@pytest.mark.parametrize("gate", GATES)
def test_a_worker_killed_six_times_is_a_wait_and_never_a_wrong_byte(
    lazy: Lazy, gate: GateName
) -> None:
    units = 20  # of 128, so that no fewer than seven workers are needed
    data = random.randbytes(32 * MIB)
    layer = lazy.layer("one", data, limit=str(units))
    path = lazy.add(layer, gate)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_digest, path)
        for number in range(1, 7):
            _wait_for_units(layer, number * units)
            os.kill(lazy.worker.status().pid, signal.SIGKILL)
        assert digest.result() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("spared", Family._fields)
def test_two_of_three_processes_killed_at_once_are_a_wait(
    lazy: Lazy, gate: GateName, spared: str
) -> None:
    data = random.randbytes(4 * MIB)
    layer = lazy.layer("one", data, hold="")
    path = lazy.add(layer, gate)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_digest, path)
        before = lazy.family()
        victims = {pid for name, pid in before._asdict().items() if name != spared}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        lazy.family(gone=victims)
        assert not digest.done()
        (layer / "hold").unlink()
        assert digest.result() == hashlib.sha256(data).hexdigest()


@pytest.mark.fuse
def test_a_worker_whose_holder_was_killed_leaves_the_place_to_its_successors(lazy: Lazy) -> None:
    data = random.randbytes(MIB)
    path = lazy.add(lazy.layer("one", data), "fuse")
    family = lazy.family()
    while True:
        os.kill(family.worker, signal.SIGKILL)
        orphan = _new_worker(lazy, family)
        _stop(orphan)
        if not _has_open(orphan, lazy.worker.directory / "worker.lock"):
            break  # else it was too fast to be overtaken
        os.kill(orphan, signal.SIGCONT)
        family = lazy.family(gone={family.worker})
    os.kill(family.holder, signal.SIGKILL)
    assert path.read_bytes() == data  # the successor's worker is there
    os.kill(orphan, signal.SIGCONT)
    lazy.family(gone={family.holder, family.worker, orphan})


def _new_worker(lazy: Lazy, before: Family) -> int:
    for _ in attempts():
        for pid, parent in lazy.processes().items():
            if parent == before.holder and pid not in before:
                return pid
    raise AssertionError("no new worker")


def _stop(pid: int) -> None:
    """Stop a process, and wait until it does nothing any more."""
    os.kill(pid, signal.SIGSTOP)
    for _ in attempts():
        with contextlib.suppress(OSError):  # a thread has just ended
            tasks = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
            if all(task.rpartition(")")[2].split()[0] == "T" for task in tasks):
                return
    raise AssertionError(f"process {pid} does not stop")


def _has_open(pid: int, path: Path) -> bool:
    return any(Path(fd).readlink() == path for fd in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize("gate", GATES)
def test_what_cannot_be_filled_is_eio_and_later_reads_work(lazy: Lazy, gate: GateName) -> None:
    data = random.randbytes(2 * MIB)
    layer = lazy.layer("one", data, fail="")
    path = lazy.add(layer, gate)
    with pytest.raises(OSError, match="Input/output error") as caught:
        path.read_bytes()
    assert caught.value.errno == errno.EIO
    with pytest.raises(Exception, match="the source is gone"):
        lazy.worker.wait(layer, SECONDS)
    (layer / "fail").unlink()
    assert path.read_bytes() == data


@pytest.mark.parametrize("gate", GATES)
def test_one_slow_layer_does_not_delay_another(lazy: Lazy, gate: GateName) -> None:
    slow, fast = random.randbytes(MIB), random.randbytes(MIB)
    layer = lazy.layer("slow", slow, hold="")
    path = lazy.add(layer, gate)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_digest, path)
        assert lazy.add(lazy.layer("fast", fast), gate).read_bytes() == fast
        with pytest.raises(DeadlineExceeded):
            lazy.worker.wait(layer, 0.01)
        (layer / "hold").unlink()
        assert digest.result() == hashlib.sha256(slow).hexdigest()


@pytest.mark.parametrize("gate", GATES)
def test_a_new_worker_takes_over_while_readers_wait(lazy: Lazy, gate: GateName) -> None:
    data = random.randbytes(2 * MIB)
    layer = lazy.layer("one", data, hold="")
    path = lazy.add(layer, gate)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_digest, path)
        before = lazy.family()
        lazy.worker.upgrade()
        for _ in attempts():
            if lazy.family().worker != before.worker:
                break
        after = lazy.family()
        assert (after.holder, after.standby) == (before.holder, before.standby)
        (layer / "hold").unlink()
        assert digest.result() == hashlib.sha256(data).hexdigest()
    assert lazy.worker.status().layers[0].complete


@hasty
@pytest.mark.parametrize("gate", GATES)
def test_nothing_is_left_when_nothing_is_needed(lazy: Lazy, gate: GateName) -> None:
    data = random.randbytes(MIB)
    layer = lazy.layer("one", data)
    path = lazy.add(layer, gate)
    with _connected(lazy.worker.directory):  # which a worker does not leave
        lazy.worker.wait(layer, SECONDS)
        report = lazy.worker.status().layers[0]
    assert (report.complete, report.local_bytes, report.size) == (True, MIB, MIB)
    if gate == "fuse":
        assert path.read_bytes() == data  # it goes on being read through the process
        lazy.worker.remove(layer)
    for _ in attempts():
        if not lazy.processes():
            break
    assert not lazy.processes()
    assert not (lazy.worker.directory / control.SOCKET).exists()
    assert not [point for point in mount_points() if point.startswith(str(lazy.root))]
    assert (layer / "data").read_bytes() == data


@pytest.mark.parametrize("gate", GATES)
def test_a_complete_layer_is_mounted_from_its_cache_file(lazy: Lazy, gate: GateName) -> None:
    data = random.randbytes(MIB)
    layer = lazy.layer("one", data)
    path = lazy.add(layer, gate)
    lazy.worker.wait(layer, SECONDS)
    assert lazy.add(layer, gate) == layer / "data"
    assert path.read_bytes() == data  # what was mounted before
    lazy.worker.remove(layer)
    assert lazy.add(layer, gate) == layer / "data"
    assert not lazy.worker.status().layers


@hasty
@pytest.mark.fanotify
def test_nothing_is_left_when_the_root_is_deleted(lazy: Lazy) -> None:
    layer = lazy.layer("one", random.randbytes(MIB), hold="")
    path = lazy.add(layer, "fanotify")
    family = lazy.family()
    with path.open("rb") as file:
        shutil.rmtree(lazy.root)
        os.kill(family.worker, signal.SIGKILL)
        for _ in attempts():
            if family.worker not in lazy.processes():
                break
        # Were the group closed, this would be read as zeros.
        reader = subprocess.Popen(("cat",), stdin=file, stdout=subprocess.PIPE)
        with reader:
            with pytest.raises(subprocess.TimeoutExpired):
                reader.wait(0.5)
            reader.kill()
    for _ in attempts():
        if not lazy.processes():
            break
    assert not lazy.processes()


@hasty
@pytest.mark.fuse
def test_fuse_is_served_without_root_until_nothing_reads(lazy: Lazy) -> None:
    data = random.randbytes(MIB)
    layer = lazy.layer("one", data)
    file = lazy.add(layer, "fuse").open("rb")
    lazy.family()
    (layer / "fail").touch()
    lazy.worker.prefetch(layer)
    _wait_for_pause(lazy)  # before it goes on, the root is gone
    (layer / "fail").unlink()
    subprocess.run(("umount", "--lazy", lazy.worker.directory / "fuse"), check=True)
    shutil.rmtree(lazy.root)
    with file:
        assert file.read() == data
        assert len(lazy.processes()) == 3
    for _ in attempts():
        if not lazy.processes():
            break
    assert not lazy.processes()


def _wait_for_pause(lazy: Lazy) -> None:
    for _ in attempts():
        if lazy.worker.status().layers[0].stage == "paused":
            return
    raise AssertionError("it does not fail to fetch")


@pytest.mark.fuse
def test_when_all_are_killed_the_fuse_gate_fails(lazy: Lazy) -> None:
    data = random.randbytes(MIB)
    layer = lazy.layer("one", data, hold="")
    path = lazy.add(layer, "fuse")
    fd = os.open(path, os.O_RDONLY)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(os.pread, fd, MIB, 0)
        lazy.family()
        lazy.kill_all()
        error = read.exception()
        assert isinstance(error, OSError)
        assert error.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    (layer / "hold").unlink()
    assert lazy.add(layer, "fuse").read_bytes() == data


@pytest.mark.fanotify
def test_when_all_are_killed_the_layer_is_refused_until_it_is_unmounted(lazy: Lazy) -> None:
    layer = lazy.layer("one", random.randbytes(MIB))
    lazy.add(layer, "fanotify")
    lazy.family()
    lazy.kill_all()
    other = lazy.layer("two", b"x")
    lazy.add(other, "fanotify")
    assert {one.directory: one.doubt for one in lazy.worker.status().layers} == {
        str(layer): True,
        str(other): False,
    }
    with pytest.raises(FailedPrecondition, match="unmount it everywhere"):
        lazy.add(layer, "fanotify")
    lazy.worker.remove(layer)
    path = lazy.add(layer, "fanotify")
    assert path.read_bytes() == (layer / "source").read_bytes()


@pytest.mark.fanotify
@pytest.mark.fuse
@pytest.mark.erofs
@pytest.mark.parametrize("gate", ["fanotify", "fuse"])
def test_erofs_reads_a_device_that_is_filled_while_workers_are_killed(
    lazy: Lazy, gate: GateName
) -> None:
    tree, image, blob = (lazy.root / name for name in ("tree", "image", "blob"))
    tree.mkdir()
    for number in range(6):
        (tree / str(number)).write_bytes(random.randbytes(random.randrange(3 * MIB)))
    subprocess.run(
        ("mkfs.erofs", "--quiet", "--chunksize=4096", f"--blobdev={blob}", image, tree),
        check=True,
    )
    layer = lazy.layer("one", b"", limit="12")
    shutil.move(blob, layer / "source")
    size = (layer / "source").stat().st_size
    os.truncate(layer / "source", -(-size // 4096) * 4096)
    path = lazy.add(layer, gate)
    at = lazy.root / "at"
    at.mkdir()
    mountapi.mount(image, at, "erofs", mountapi.MS_RDONLY, f"device={path}")
    done = threading.Event()

    def kill() -> None:
        units = 12
        while not done.wait(0.02):
            if _local_units(layer) >= units:
                os.kill(lazy.worker.status().pid, signal.SIGKILL)
                units += 12

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        try:
            digests = {path.name: _digest(path) for path in at.iterdir()}
        finally:
            done.set()
        killed.result()
    assert digests == {path.name: _digest(path) for path in tree.iterdir()}
    mountapi.umount2(at)


@pytest.mark.fuse
@pytest.mark.loop
@pytest.mark.erofs_utils
def test_a_loop_device_reads_through_the_fuse_gate(lazy: Lazy) -> None:
    tree, at = lazy.root / "tree", lazy.root / "at"
    tree.mkdir()
    at.mkdir()
    (tree / "file").write_bytes(random.randbytes(3 * MIB))
    layer = lazy.layer("one", b"")
    subprocess.run(("mkfs.erofs", "--quiet", layer / "source", tree), check=True)
    path = lazy.add(layer, "fuse")
    subprocess.run(("mount", "-t", "erofs", "-o", "loop,ro", path, at), check=True)
    assert not lazy.worker.status().layers[0].complete
    assert (at / "file").read_bytes() == (tree / "file").read_bytes()
    subprocess.run(("umount", at), check=True)


@pytest.mark.fuse
def test_what_the_worker_refuses(lazy: Lazy) -> None:
    layer = lazy.layer("one", b"x")
    with pytest.raises(InvalidArgument, match="no_such_module"):
        lazy.worker.add(layer, "no_such_module:x", "fuse")
    with pytest.raises(FailedPrecondition, match="No such file"):
        lazy.worker.add(lazy.root / "missing", FACTORY, "fuse")
    with pytest.raises(NotFound):
        lazy.worker.prefetch(layer)
    assert not lazy.worker.status().layers
    with _connected(lazy.worker.directory) as connection:
        for line, kind in ((b"nonsense", "InvalidArgument"), (b'{"op":"x"}', "InvalidArgument")):
            connection.sendall(line + b"\n")
            answer = json.loads(control.read_line(connection))
            assert (answer["is"], answer["kind"]) == ("failed", kind)


def test_other_users_are_not_listened_to() -> None:
    os.seteuid(65534)
    try:
        ours, theirs = socket.socketpair()
    finally:
        os.seteuid(0)
    with ours, theirs:
        assert not control.may_ask(ours)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert control.may_ask(ours)


@contextlib.contextmanager
def _connected(directory: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection, control.socket_address(directory) as address:
        connection.connect(address)
        yield connection


@pytest.mark.fanotify
def test_fanotify_probe(tmp_path: Path) -> None:
    from lamina.linux import fanotify

    assert fanotify.probe(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    assert fanotify.probe(Path("/proc")) is not None


@pytest.mark.fanotify
@pytest.mark.fuse
def test_the_best_gate_is_chosen_by_trying(tmp_path: Path) -> None:
    if os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC:
        assert choose_gate(tmp_path) == "fanotify"
    subprocess.run(("mount", "-t", "tmpfs", "none", tmp_path), check=True)
    assert choose_gate(tmp_path) == "fuse"
    subprocess.run(("umount", tmp_path), check=True)
    with pytest.raises(FailedPrecondition, match=r"fanotify: .*; fuse: "):
        choose_gate(Path("/proc"))


@pytest.mark.fuse
@pytest.mark.loop
def test_devices_are_files_in_loop_devices_where_that_works(tmp_path: Path) -> None:
    assert choose_device_gate(tmp_path) == "fuse"


@pytest.mark.fanotify
@pytest.mark.fuse
def test_in_a_process_namespace_the_gate_is_fuse(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from lamina.lazy.gates.choice import choose_gate"
    code += "; print(choose_gate(Path(sys.argv[1])))"
    argv = ("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, tmp_path)
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("fuse\n", "")


@pytest.mark.fanotify
def test_the_number_of_a_denied_read_reaches_the_reader(tmp_path: Path) -> None:
    from lamina.linux import fanotify

    path = tmp_path / "file"
    path.write_bytes(b"data")
    group = fanotify.new_group()
    try:
        fanotify.add_mark(group, path)
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(path.read_bytes)
            select.select([group], [], [])
            event = fanotify.parse_event(os.read(group, fanotify.EVENT_SIZE))
            assert (event.pid, event.offset) == (os.getpid(), 0)
            fanotify.deny(group, event.fd, errno.ENOSPC)
            os.close(event.fd)
            error = read.exception()
            assert isinstance(error, OSError)
            assert error.errno == errno.ENOSPC
            with pytest.raises(FileNotFoundError):
                fanotify.allow(group, event.fd)
        fanotify.remove_mark(group, path)
        assert path.read_bytes() == b"data"
        with pytest.raises(FileNotFoundError, match="file"):
            fanotify.remove_mark(group, path)
    finally:
        os.close(group)


@pytest.mark.fanotify
def test_an_event_left_by_a_killed_worker_keeps_its_number(tmp_path: Path) -> None:
    """Whatever its number is in the next process: in use for good, the lowest free, or another."""
    data = random.randbytes(UNIT)
    (tmp_path / "source").write_bytes(data)
    done = subprocess.run(
        (sys.executable, "-c", LEFT_EVENTS, tmp_path), cwd=Path(__file__).parents[2], timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == hashlib.sha256(data).hexdigest() * 3


LEFT_EVENTS = """
import hashlib, os, select, subprocess, sys
from pathlib import Path
from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.fanotify import SLOT_COUNT, SLOT_SIZE, FanotifyGate
from lamina.lazy.slots import Slots, new_memory
from lamina.linux import fanotify
from tests.lazy_filler import FileFiller

group, memory = fanotify.new_group(), new_memory("test", SLOT_SIZE, SLOT_COUNT)
filler = FileFiller(Path(sys.argv[1]))
fanotify.add_mark(group, filler.data_path)
slots, readers = Slots(memory, SLOT_SIZE, room=16), []
for _ in range(3):
    readers.append(subprocess.Popen(["sha256sum", filler.data_path], stdout=subprocess.PIPE))
    select.select([group], [], [])
    slots.take(group)
numbers = [fanotify.parse_event(slot).fd for _, slot in slots.left()]
for number in numbers:
    os.close(number)
assert os.open("/dev/null", os.O_RDONLY) == min(numbers)  # for good
gate = FanotifyGate(group, memory)
gate.add(GatedFile(1, filler.data_path, filler))
gate.start()
for reader in readers:
    print(reader.communicate()[0].split()[0].decode(), end="", flush=True)
os._exit(0)
"""
