"""Which files a container opens, as the kernel tells it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.runtime.containers import Containers
from lamina.runtime.mounts import parse_mount
from lamina.runtime.oci_runtime import StartFailed, find_runtime
from lamina.runtime.recording import Ended, Recorded, Until, record
from lamina.runtime.request import RunRequest
from lamina.runtime.spec import SpecOptions
from lamina.store import Store
from tests.archives import gnu_tar
from tests.fixtures_command import Command
from tests.fixtures_containers import IMAGE, Machine, make_rootfs

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay]

START = [b"etc/passwd", b"etc/group", b"bin/busybox"]
"""What starting any program of the image reads, the runtime's search for users included."""
LONG = Until(period=60.0)
PLAIN = SpecOptions()


@pytest.fixture
def machine(root_dir: Path, container_id: str, tmp_path: Path) -> Machine:
    """Return a root with an image that has some data besides busybox."""
    root_dir.mkdir(mode=0o711, parents=True)
    machine = Machine(root_dir, container_id, Command(root_dir))
    rootfs = tmp_path / "with-data"
    rootfs.mkdir()
    make_rootfs(rootfs)
    (rootfs / "data").mkdir()
    for name in ("a", "b", "c", "d", "unused"):
        (rootfs / "data" / name).write_text(f"{name}\n")
    (rootfs / "data/hard").hardlink_to(rootfs / "data/a")
    (rootfs / "data/link").symlink_to("/data/b")
    (rootfs / "data/dir").mkdir()
    machine.add_image(gnu_tar(rootfs), {"Env": ["PATH=/bin"], "Cmd": ["cat", "/data/d"]})
    return machine


@pytest.fixture
def store(machine: Machine) -> Iterator[Store]:
    with Store(machine.root) as store:
        yield store


def run(
    store: Store,
    machine: Machine,
    *args: str,
    until: Until = LONG,
    snapshotter: str = "overlayfs",
    options: SpecOptions = PLAIN,
) -> Recorded:
    launch = store.launch(IMAGE)
    containers = Containers(store.containers, store.root / "containers", store.snapshotter)
    request = RunRequest(
        id=machine.id,
        runtime=find_runtime(),
        image=IMAGE,
        process=launch.process,
        snapshotter=snapshotter,
        parent=launch.chain_id,
        options=options._replace(args=args),
    )
    return record(containers, request, until)


def shell(script: str) -> tuple[str, str, str]:
    return "sh", "-c", script


def test_order_of_first_use(store: Store, machine: Machine) -> None:
    script = "cat /data/c; cat /data/link; cat /data/c /data/hard; ls /data/dir; : </data/a"
    found = run(store, machine, *shell(script))
    assert found.paths == [*START, b"data/c", b"data/b", b"data/hard", b"data/a"]
    assert (found.ended, found.code, found.lost) == (Ended.EXIT, 0, 0)
    assert machine.leftovers() == []


def test_the_command_of_the_image(store: Store, machine: Machine) -> None:
    assert run(store, machine).paths == [*START, b"data/d"]


def test_what_is_deleted_is_noted_and_directories_and_pipes_are_not(
    store: Store, machine: Machine
) -> None:
    script = "busybox mkfifo /p; exec 3<>/p; exec 4</data/a; rm /data/a; ls / >/dev/null"
    assert run(store, machine, *shell(script)).paths == [*START, b"data/a"]


def test_in_another_mount_namespace_and_root(store: Store, machine: Machine) -> None:
    script = """
        busybox unshare -m cat /data/a
        mkdir -p /data/dir/bin && cp /bin/busybox /data/dir/bin/
        busybox chroot /data/dir /bin/busybox true
    """
    options = SpecOptions(privileged=True)
    script = script.replace("cp ", "busybox cp ")
    found = run(store, machine, *shell(script), options=options)
    assert found.paths == [*START, b"data/a", b"data/dir/bin/busybox"]


def test_what_is_mounted_into_it_is_none_of_the_image(
    store: Store, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/a").write_text("of the host\n")
    mounts = [parse_mount(f"type=bind,src={tmp_path}/host,dst=/data,options=rbind:ro")]
    found = run(store, machine, "cat", "/data/a", options=SpecOptions(mounts=mounts))
    assert found.paths == START


def test_a_root_on_a_disk_that_others_use(store: Store, machine: Machine, tmp_path: Path) -> None:
    store.unpack(IMAGE, "native")
    over = threading.Event()

    def others() -> None:
        (tmp_path / "data").mkdir()
        while not over.wait(0.01):
            (tmp_path / "data/a").write_text("")
            Path("/etc/hosts").read_bytes()

    thread = threading.Thread(target=others)
    thread.start()
    try:
        found = run(store, machine, *shell("cat /data/b; sleep 0.3"), snapshotter="native")
    finally:
        over.set()
        thread.join()
    assert found.paths == [*START, b"data/b"]


def test_a_service_is_ended(
    store: Store, machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "cat /data/a; exec sleep 100"
    found = run(store, machine, *shell(script), until=Until(period=1.0))
    assert found.paths == [*START, b"data/a"]
    assert (found.ended, found.code) == (Ended.PERIOD, 137)
    assert capfd.readouterr().out == "a\n"
    assert machine.leftovers() == []


def test_until_a_line(store: Store, machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    script = "cat /data/a; echo not yet; echo -n now it is; echo ' ready'; exec sleep 100"
    found = run(store, machine, *shell(script), until=Until(None, line="is ready"))
    assert found.paths == [*START, b"data/a"]
    assert (found.ended, found.code) == (Ended.LINE, 137)
    assert capfd.readouterr().out == "a\nnot yet\nnow it is ready\n"


def test_until_it_is_asked(store: Store, machine: Machine) -> None:
    asked = os.eventfd(0)
    os.eventfd_write(asked, 1)
    try:
        found = run(store, machine, "sleep", "100", until=Until(None, asked=asked))
    finally:
        os.close(asked)
    assert (found.ended, found.code) == (Ended.REQUEST, 137)
    assert machine.leftovers() == []


def test_a_command_that_fails(store: Store, machine: Machine) -> None:
    found = run(store, machine, *shell("cat /data/a; exit 3"))
    assert (found.paths, found.ended, found.code) == ([*START, b"data/a"], Ended.EXIT, 3)


def test_a_command_that_is_not_there(store: Store, machine: Machine) -> None:
    with pytest.raises(StartFailed, match=r"no such file|not found"):
        run(store, machine, "/no/such/program")
    assert machine.leftovers() == []
