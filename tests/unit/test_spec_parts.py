"""Parsers of the flags, the names of runtimes, and the records of containers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lamina.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from lamina.meta.containers import CONTAINERS, Container, ContainerStore
from lamina.meta.database import Database
from lamina.runtime.bundle import Bundle, Busy, Exit, check_id
from lamina.runtime.cgroup import default_path
from lamina.runtime.mounts import ContainerMount, parse_mount
from lamina.runtime.namespaces import parse_namespace
from lamina.runtime.oci_runtime import OciRuntime, find_runtime
from lamina.runtime.tasks import parse_signal


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        (
            "type=bind,src=/tmp,dst=/host,options=rbind:ro",
            ContainerMount("/host", "bind", "/tmp", ("rbind", "ro")),
        ),
        ("type=bind,source=/a,destination=/b", ContainerMount("/b", "bind", "/a", ("rbind",))),
        ("src=/a,target=/b,options=bind", ContainerMount("/b", "bind", "/a", ("bind",))),
        ("type=tmpfs,dst=/t", ContainerMount("/t", "tmpfs", "tmpfs", ())),
    ],
)
def test_mount(text: str, mount: ContainerMount) -> None:
    assert parse_mount(text) == mount


@pytest.mark.parametrize(
    "text", ["", "type=bind", "type=bind,dst=relative", "dst=/x", "type=bind,dst=/x,color=red", "x"]
)
def test_bad_mount(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_mount(text)


def test_namespace() -> None:
    assert parse_namespace("net:/run/n") == ("network", "/run/n")
    assert parse_namespace("pid:/proc/1/ns/pid") == ("pid", "/proc/1/ns/pid")
    for text in ("", "net", "net:", "net:relative", "time:/x"):
        with pytest.raises(InvalidArgument):
            parse_namespace(text)


@pytest.mark.parametrize("text", ["9", "KILL", "SIGKILL", "sigkill"])
def test_signal(text: str) -> None:
    assert parse_signal(text) == signal.SIGKILL


@pytest.mark.parametrize("text", ["", "0", "-1", "NOPE", "99999999999999999999", "SIG"])
def test_bad_signal(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_signal(text)


def test_ids() -> None:
    for id in ("a", "A1", "a-b.c_d", "x" * 76):
        check_id(id)
    for id in ("", ".", "..", "a/b", "-a", "a-", "a--b", "a\n", "x" * 77, "ä"):
        with pytest.raises(InvalidArgument):
            check_id(id)


def test_cgroup_paths_differ_between_stores() -> None:
    one, other = default_path(Path("/a"), "id"), default_path(Path("/b"), "id")
    assert one != other
    assert one == default_path(Path("/a"), "id")
    assert one.startswith("/lamina-") and one.endswith("-id") and one.count("/") == 1


def _program(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_runtime_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    crun = _program(tmp_path / "a/crun")
    runc = _program(tmp_path / "b/runc")
    search = f"{tmp_path}/a:{tmp_path}/b"
    assert find_runtime("", search) == runc
    assert find_runtime("crun", search) == crun
    assert find_runtime("io.containerd.runc.v2", search) == runc
    assert find_runtime("", f"{tmp_path}/a") == crun
    assert find_runtime(crun) == crun
    os.chmod(runc, 0o644)
    assert find_runtime("", search) == crun
    assert find_runtime("", f"{tmp_path}/{'x' * 300}:{runc}:{search}") == crun  # no directories
    with pytest.raises(NotFound, match="apt-get install runc"):
        find_runtime("", "/nowhere")
    with pytest.raises(NotFound):
        find_runtime("/nowhere/runc")
    with pytest.raises(InvalidArgument):
        find_runtime("io.containerd.kata.v2", search)


def test_failure_is_the_last_error_of_the_log(tmp_path: Path) -> None:
    runtime = OciRuntime("/usr/bin/runc", tmp_path, tmp_path / "log")
    assert runtime.failure() == "runc ended without saying why"
    runtime.log.write_text(
        '{"level":"error","msg":"first"}\n{"level":"warning","msg":"w"}\n'
        '{"level":"error","msg":"runc run failed: unable to start container process: exec: no"}\n'
        'not json\n["list"]\n'
    )
    assert runtime.failure() == "exec: no"


def test_bundle_lock(tmp_path: Path) -> None:
    one, other = Bundle(tmp_path, "x"), Bundle(tmp_path, "x")
    with one.locked() as fd:
        assert not os.get_inheritable(fd)
        with pytest.raises(Busy), other.locked():
            pass
        one.rootfs.mkdir()
        (one.path / "runtime/x").mkdir(parents=True)
        one.write_exit(Exit(1, 2, 3))
        one.remove()
        assert not one.path.exists()
        # The lock that is held is on a directory that is no more.
        with other.locked():
            pass
    with one.locked():
        pass


def test_bundle_never_removes_what_is_in_the_root(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "x")
    (bundle.rootfs / "data").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        bundle.remove()
    assert (bundle.rootfs / "data").is_dir()


def test_exit_record(tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, "x")
    bundle.path.mkdir()
    assert bundle.read_exit() is None
    bundle.write_exit(Exit(12, 137, 5))
    assert bundle.read_exit() == Exit(12, 137, 5)
    bundle.exit_file.write_text("{")
    with pytest.raises(DataLoss):
        bundle.read_exit()


def test_container_records(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", (CONTAINERS,))
    store = ContainerStore(database)
    first = store.create(Container("b", image="i", runtime="/r", labels={"x": "1", "y": "2"}))
    assert store.get("b") == first
    assert first.created_ns == first.updated_ns > 0
    with pytest.raises(AlreadyExists, match="lamina containers rm b"):
        store.create(Container("b"))
    store.create(Container("a", throw_away=True))
    assert [container.id for container in store.list()] == ["a", "b"]
    assert [container.id for container in store.throw_aways()] == ["a"]
    changed = store.label("b", {"x": "", "z": "3"})
    assert changed.labels == {"y": "2", "z": "3"}
    assert changed.updated_ns > changed.created_ns
    store.delete("b")
    store.delete("b")
    assert store.find("b") is None
    for call in (store.get, lambda id: store.label(id, {"a": "b"})):
        with pytest.raises(NotFound):
            call("b")
    database.close()
