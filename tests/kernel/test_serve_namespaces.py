"""A daemon that mounts layers, and clients in other mount namespaces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition
from lamina.linux.peer import sees_the_same, shares_mounts
from lamina.mount import temp_mount, unmount, unmount_recursive
from tests.fixtures_serve import Serve

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]

LAMINA = str(Path(sys.executable).with_name("lamina"))


@contextmanager
def elsewhere(propagation: str) -> Iterator[int]:
    """Keep a process in a mount namespace of its own, and yield its number."""
    argv = ("unshare", "--mount", "--propagation", propagation, "sh", "-c", "echo; exec cat")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A mount of which other namespaces get what is mounted below it."""
    subprocess.run(("mount", "--bind", tmp_path, tmp_path), check=True)
    subprocess.run(("mount", "--make-shared", tmp_path), check=True)
    yield tmp_path
    unmount_recursive(tmp_path)


@pytest.mark.parametrize(("propagation", "seen"), [("private", False), ("slave", True)])
def test_who_sees_a_mount(shared: Path, propagation: str, seen: bool) -> None:
    point = shared / "point"
    point.mkdir()
    with elsewhere(propagation) as pid:
        assert not shares_mounts(pid)
        assert sees_the_same(pid, point)
        subprocess.run(("mount", "-t", "tmpfs", "tmpfs", point), check=True)
        assert sees_the_same(pid, point) == seen
        unmount(point)


def make_layer(serve: Serve, where: Path) -> None:
    with (
        Channel(serve.address) as channel,
        RemoteSnapshotter(channel, "erofs") as snapshotter,
    ):
        with temp_mount(snapshotter.prepare("key"), dir=where) as root:
            (root / "file").write_text("here")
        snapshotter.commit("layer", "key")


def snapshots(serve: Serve, *arguments: str) -> list[str]:
    address = ("--address", str(serve.address), "--snapshotter", "erofs")
    return [LAMINA, "snapshots", *address, *arguments]


def test_a_caller_that_would_see_nothing_is_refused(serve: Serve, tmp_path: Path) -> None:
    make_layer(serve, tmp_path)
    argv = snapshots(serve, "prepare", "container", "layer")
    private = ("unshare", "--mount", "--propagation", "private", *argv)
    refused = subprocess.run(private, capture_output=True, text=True)
    assert refused.returncode == FailedPrecondition.exit_code
    assert "let the caller mount layer" in refused.stderr
    assert "make-rshared" in refused.stderr
    # Nothing is left of it, and who sees the layer has no trouble.
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def test_a_caller_that_gets_the_mounts_is_served(shared: Path, serve: Serve) -> None:
    make_layer(serve, shared)
    with elsewhere("slave") as pid:
        enter = ("nsenter", "--target", str(pid), "--mount")
        argv = snapshots(serve, "prepare", "container", "layer")
        subprocess.run((*enter, *argv), check=True, stdout=subprocess.DEVNULL)
        [mount] = mounts_of(serve)
        lower = next(o for o in mount.options if o.startswith("lowerdir="))
        file = Path(lower.removeprefix("lowerdir=")) / "file"
        shown = subprocess.run((*enter, "cat", file), check=True, capture_output=True, text=True)
        assert shown.stdout == "here"


def mounts_of(serve: Serve) -> list[Mount]:
    with (
        Channel(serve.address) as channel,
        RemoteSnapshotter(channel, "erofs") as snapshotter,
    ):
        return snapshotter.mounts("container")
