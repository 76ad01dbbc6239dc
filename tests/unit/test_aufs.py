"""The aufs snapshotter up to the system call, which no distribution's kernel understands."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from lamina.core.driver import Snapshot
from lamina.core.mount import Mount, read_only_mounts
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition, InvalidArgument, SnapshotterSkipped
from lamina.layer.target import layer_target
from lamina.linux import mountapi
from lamina.mount.aufs import Aufs
from lamina.mount.plan import plan_one
from lamina.mount.watch import has_own_filesystem
from lamina.snapshotters.aufs import support
from lamina.snapshotters.aufs.driver import AufsDriver
from lamina.snapshotters.aufs.plugin import PLUGIN, AufsConfig
from lamina.snapshotters.engine import Engine
from lamina.tools import modprobe

ACTIVE, VIEW = Kind.ACTIVE, Kind.VIEW


def driver(root: Path, *, dirperm1: bool = True) -> AufsDriver:
    return AufsDriver(root, dirperm1=dirperm1)


def aufs(*options: str) -> Mount:
    return Mount("aufs", "none", options=options)


# Mounts


def test_mounts(tmp_path: Path) -> None:
    base = f"{tmp_path}/snapshots"
    made = driver(tmp_path)

    def mounts(kind: Kind, *parents: int) -> list[Mount]:
        return made.mounts(Snapshot(9, kind, parents))

    def bind(id: int, access: str) -> list[Mount]:
        return [Mount("bind", f"{base}/{id}/fs", options=(access, "rbind"))]

    common = ("dio", "xino=/dev/shm/aufs.xino", "dirperm1")
    assert mounts(ACTIVE) == bind(9, "rw")
    assert mounts(VIEW) == bind(9, "ro")
    assert mounts(VIEW, 3) == bind(3, "ro")
    lower = f"{base}/3/fs=ro+wh:{base}/2/fs=ro+wh"
    assert mounts(ACTIVE, 3, 2) == [aufs(*common, f"br:{base}/9/fs=rw:{lower}")]
    assert mounts(ACTIVE, 3) == [aufs(*common, f"br:{base}/9/fs=rw:{base}/3/fs=ro+wh")]
    assert mounts(VIEW, 3, 2) == [aufs(*common, f"br:{lower}")]
    old = driver(tmp_path, dirperm1=False)
    [mount] = old.mounts(Snapshot(9, ACTIVE, (3,)))
    assert mount.options[:-1] == ("dio", "xino=/dev/shm/aufs.xino")


@pytest.mark.parametrize("name", ["a:b", "a,b", "a=b"])
def test_paths_that_aufs_cannot_be_told_of(tmp_path: Path, name: str) -> None:
    with pytest.raises(FailedPrecondition, match="choose another"):
        driver(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_read_only() -> None:
    writable = aufs("dio", "br:/u=rw:/l=ro+wh")
    view = aufs("dio", "br:/b=ro+wh:/l=ro+wh")
    assert (writable.read_only, view.read_only) == (False, True)
    assert aufs("br:/u=rw", "ro").read_only
    [seen] = read_only_mounts([writable])
    assert seen == aufs("dio", "br:/u=ro+wh:/l=ro+wh", "ro")
    assert not has_own_filesystem([writable])


def test_layers_go_through_the_mount_and_the_base_layer_into_its_directory(tmp_path: Path) -> None:
    """What deletes writes aufs's own notation, which only aufs does."""
    made = driver(tmp_path)
    assert made.abilities == set(), "with `rebase` layers would be extracted as overlayfs's"
    assert layer_target(made.mounts(Snapshot(2, ACTIVE, (1,))), rebase=False) is None
    target = layer_target(made.mounts(Snapshot(1, ACTIVE)), rebase=False)
    assert target is not None
    assert (target.root, target.overlay_whiteouts) == (tmp_path / "snapshots/1/fs", False)


# Storage


def test_snapshots_without_a_mount(tmp_path: Path) -> None:
    with Engine("aufs", driver(tmp_path), tmp_path, sync_remove=True) as engine:
        engine.prepare("a")
        fs = tmp_path / "snapshots/1/fs"
        assert (fs.stat().st_mode & 0o7777, os.listdir(fs.parent)) == (0o755, ["fs"])
        (fs / "file").write_bytes(bytes(8192))
        engine.commit("one", "a")
        assert engine.usage("one").inodes == 2
        assert engine.usage("one").size >= 8192
        [mount] = engine.prepare("b", "one")
        assert mount.type == "aufs"
        fs.rename(tmp_path / "elsewhere")
        assert [problem.subject for problem in engine.fsck()] == ["1"]
        (tmp_path / "elsewhere").rename(fs)
        engine.remove("b")
        engine.remove("one")
        assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.root
def test_owner_of_the_root_directory(tmp_path: Path) -> None:
    made = driver(tmp_path)
    made.create(Snapshot(1, ACTIVE))
    os.chown(made.fs(1), 5, 6)
    made.create(Snapshot(2, ACTIVE, (1,)))
    assert (made.fs(2).stat().st_uid, made.fs(2).stat().st_gid) == (5, 6)
    made.close()


# What mount(2) is given


def steps(mount: Mount) -> list[str]:
    operation = plan_one(mount)
    assert isinstance(operation, Aufs)
    return list(operation.steps())


def test_few_branches_are_one_call() -> None:
    mount = aufs("dio", "xino=/x", "br:/u=rw:/l=ro+wh", "noatime")
    assert steps(mount) == ["dio,xino=/x,br:/u=rw:/l=ro+wh"]
    operation = plan_one(mount)
    assert operation.options.flags == mountapi.MS_NOATIME
    assert operation.describe() == "mount aufs of 2 branches, writing to /u"
    assert plan_one(aufs("br:/l=ro+wh")).describe() == "mount aufs of 1 branch"


def test_more_branches_than_fit_are_appended_in_their_order() -> None:
    branches = [f"/{'b' * 200}/{number}=ro+wh" for number in range(60)]
    first, *rest = steps(aufs("dio", "br:" + ":".join(branches)))
    assert len(first) <= mountapi.DATA_MAX < len(f"{first}:{branches[0]}")
    assert all(step.startswith("append:/") for step in rest)
    shown = first.removeprefix("dio,br:").split(":")
    assert shown + [step.removeprefix("append:") for step in rest] == branches


@pytest.mark.parametrize("options", [("dio",), ("br:",), ("br:/a=rw", "br:/b=ro")])
def test_without_branches(options: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="one option br:"):
        plan_one(aufs(*options))


# Whether there is one


def trial(monkeypatch: pytest.MonkeyPatch, *errors: int) -> list[str]:
    """Have the trial mounts end so, 0 for success; return what they were given.

    The one system call that no kernel at hand carries out; `test_this_kernel` makes it.
    """
    given: list[str] = []
    answers = iter(errors)

    def answer(place: Path, *more: str) -> OSError | None:
        given.append(",".join(more))
        number = next(answers)
        return OSError(number, os.strerror(number)) if number else None

    monkeypatch.setattr(support, "_mount", answer)
    monkeypatch.setattr(modprobe, "modprobe", lambda name: given.append(f"modprobe {name}"))
    return given


def test_dirperm1_where_the_kernel_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = trial(monkeypatch, 0)
    PLUGIN.load(AufsConfig(), tmp_path / "sn").close()
    assert given == ["dirperm1"]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "deprecated" in warnings[0]
    assert [path.name for path in (tmp_path / "sn").iterdir()] == ["snapshots"]


def test_the_module_is_loaded_and_an_old_one_has_no_dirperm1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules" / os.uname().release).mkdir(parents=True)
    monkeypatch.setattr(support, "_MODULES", tmp_path / "modules")
    given = trial(monkeypatch, errno.ENODEV, errno.EINVAL, 0)
    assert support.require_aufs(tmp_path) is False
    assert given == ["dirperm1", "modprobe aufs", "dirperm1", ""]


@pytest.mark.parametrize("errors", [(errno.EPERM,), (errno.EINVAL, errno.EINVAL)])
def test_a_mount_that_fails_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: tuple[int, ...]
) -> None:
    trial(monkeypatch, *errors)
    with pytest.raises(SnapshotterSkipped) as skipped:
        PLUGIN.load(AufsConfig(), tmp_path / "sn")
    assert skipped.value.reason == f"mounting an aufs fails: {os.strerror(errors[-1])}"
    assert list(tmp_path.iterdir()) == []


def test_there_are_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_MODULES", tmp_path / "modules")
    trial(monkeypatch, errno.ENODEV)
    with pytest.raises(SnapshotterSkipped, match="no modules in"):
        support.require_aufs(tmp_path)


@pytest.mark.root
def test_this_kernel(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Really tried; where there is an aufs after all, it is to load."""
    try:
        PLUGIN.load(AufsConfig(), tmp_path / "sn").close()
    except SnapshotterSkipped as skipped:
        assert os.uname().release in skipped.reason or "mounting an aufs fails" in skipped.reason
        assert "kernel" in skipped.fix
        assert list(tmp_path.iterdir()) == []
        assert caplog.records == []
