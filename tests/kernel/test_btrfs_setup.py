"""`lamina btrfs`: from set-up to teardown, on real loop devices and mounts."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.btrfs import manage
from lamina.btrfs.manage import Site
from lamina.btrfs.record import Quota, Record, Records
from lamina.btrfs.status import read_status
from lamina.btrfs.volume import SMALLEST, quota_of
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from lamina.provision.unit import BootUnit
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.plugin import PLUGIN as NATIVE
from tests.filesystems import mounted
from tests.fixtures_command import Command
from tests.isolation import mount_points
from tests.killed import killed

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.btrfs]

MIB = 1 << 20
SIZE = 256 * MIB
SETUP = ("btrfs", "setup", "--loop", "256M")
NOBODY = 65534
SIMPLE = Path("/sys/fs/btrfs/features/simple_quota")
"""There on kernels that have simple quotas, once btrfs is loaded."""
STEP = 9
"""Every so manieth step is where a kill is tried; with 1, it takes minutes."""
WITH_EFFECT = ("lamina.btrfs", "lamina.provision", "lamina.linux", "lamina.tools", "lamina.mount")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A root whose units are those of a system below it."""
    root = tmp_path / "root"
    made = Site(
        records=Records(root),
        root=root,
        program=("lamina",),
        unit=lambda name: BootUnit(name, root=root / "system"),
        say=lambda _: None,
    )
    yield made
    with suppress(NotFound):
        manage.teardown(made, force=True)


@pytest.fixture
def wanted(site: Site) -> Record:
    place = site.root / "io.containerd.snapshotter.v1.btrfs"
    return Record(file=str(site.root / "btrfs/btrfs.img"), size=SIZE, place=str(place))


@pytest.fixture
def place(wanted: Record) -> Path:
    return Path(wanted.place)


def bound_files() -> str:
    found = ""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # somebody else's, freed meanwhile
            found += path.read_text()
    return found


def assert_gone(root: Path) -> None:
    """Nothing is left but the lock."""
    assert [path.name for path in (root / "btrfs").iterdir()] == ["lock"]
    assert str(root) not in bound_files()
    assert not [point for point in mount_points() if point.startswith(str(root))]
    assert not list(root.glob("io.containerd*"))


@contextmanager
def opened(place: Path) -> Iterator[Engine]:
    """Record snapshots there; which driver keeps them does not matter."""
    engine = Engine("native", NATIVE.load(NATIVE.config(), place), place)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def bind(source: Path, point: Path) -> Iterator[None]:
    point.mkdir()
    subprocess.run(("mount", "--bind", source, point), check=True)
    try:
        yield
    finally:
        if str(point) in mount_points():
            subprocess.run(("umount", point), check=True)


def test_from_setup_to_teardown(command: Command) -> None:
    file = command.root / "btrfs/btrfs.img"
    place = command.root / "io.containerd.snapshotter.v1.btrfs"
    first = command.run(*SETUP)
    assert first.stdout == b""
    assert f"btrfs {file} is mounted at {place}\n" in first.stderr.decode()
    assert (file.stat().st_size, file.stat().st_mode & 0o777) == (SIZE, 0o600)
    assert place.stat().st_mode & 0o777 == 0o700
    (place / "kept").touch()

    again = command.run(*SETUP).stderr.decode()
    assert "was set up before, and is mounted" in again
    assert again.count("mount") == 1
    report = command.json("btrfs", "status", "--json")
    assert report["Place"] == str(place)
    assert (report["State"], report["Mounted"]) == ("ready", True)
    assert report["File"]["Size"] == report["Space"]["Total"] == SIZE
    assert 0 < report["File"]["Allocated"] < SIZE
    assert report["Space"]["Used"] + report["Space"]["Free"] <= SIZE
    assert "of 256.0 MiB taken" in command.out("btrfs", "status")

    command.run("btrfs", "deactivate")
    command.run("btrfs", "deactivate")
    assert str(file) not in bound_files()
    assert "lamina btrfs activate" in command.out("btrfs", "status")
    assert command.json("btrfs", "status", "--json")["Space"] is None
    command.run("btrfs", "activate")
    assert "already" in command.run("btrfs", "activate").stderr.decode()
    (place / "kept").unlink()

    command.run("btrfs", "teardown")
    assert_gone(command.root)
    for verb in ("teardown", "activate", "deactivate", "status"):
        assert "lamina btrfs setup --loop SIZE" in command.error("btrfs", verb, code=3)
    command.run(*SETUP)
    command.run("btrfs", "teardown")
    assert_gone(command.root)


def test_after_a_reboot(command: Command, tmp_path: Path) -> None:
    place = command.root / "io.containerd.snapshotter.v1.btrfs"
    command.run(*SETUP, "--dir", tmp_path / "elsewhere")
    file = tmp_path / "elsewhere/btrfs.img"
    (place / "kept").write_text("content")
    subprocess.run(("umount", place), check=True)
    assert str(file) not in bound_files()
    assert not (place / "kept").exists()

    (place / "early").touch()
    assert "early" in command.error("btrfs", "activate", code=7)
    (place / "early").unlink()
    command.run("btrfs", "activate")
    assert (place / "kept").read_text() == "content"

    subprocess.run(("umount", place), check=True)
    command.run(*SETUP, "--dir", tmp_path / "elsewhere")
    assert (place / "kept").read_text() == "content"

    subprocess.run(("umount", place), check=True)
    file.rename(tmp_path / "lost")
    assert str(file) in command.error("btrfs", "activate", code=13)
    assert "not known" in command.error("btrfs", "teardown", code=7)
    command.run("btrfs", "teardown", "--force")
    assert_gone(command.root)


def test_unit(site: Site, wanted: Record) -> None:
    system = site.root / "system"
    assert not manage.setup(site, wanted).starts_at_boot
    (system / "run/systemd/system").mkdir(parents=True)
    assert manage.setup(site, wanted).starts_at_boot
    unit = manage.boot_unit(site)
    assert unit.name.startswith("lamina-btrfs-")
    text = unit.path.read_text()
    assert f"ExecStart=lamina --root {site.root} btrfs activate\n" in text
    assert f"ExecStop=lamina --root {site.root} btrfs deactivate\n" in text
    assert f"RequiresMountsFor={site.root} {site.root}/btrfs {site.root}\n" in text
    assert "Before=lamina.service containerd.service docker.service\n" in text
    wants = system / "etc/systemd/system/multi-user.target.wants" / unit.name
    assert wants.is_symlink()
    if shutil.which("systemd-analyze"):
        copy = site.root / unit.name
        copy.write_text(text.replace("=lamina ", "=/bin/true "))
        argv = ("systemd-analyze", "verify", "--man=no", copy)
        assert unit.name not in subprocess.run(argv, capture_output=True, text=True).stderr
        copy.unlink()

    manage.teardown(site, force=False)
    assert not unit.path.exists()
    assert not wants.is_symlink()
    assert_gone(site.root)


@pytest.mark.parametrize("quota", ["none", "simple", "full"])
def test_quotas(site: Site, wanted: Record, place: Path, quota: Quota) -> None:
    if quota == "simple" and not SIMPLE.exists():
        with pytest.raises(FailedPrecondition, match=r"Linux 6\.7"):
            manage.setup(site, replace(wanted, quota="simple"))
        return
    manage.setup(site, replace(wanted, quota=quota))
    report = read_status(site.records.get(), place)
    assert report.space is not None
    assert report.space.quota == quota
    subprocess.run(("btrfs", "-q", "subvolume", "create", place / "one"), check=True)
    limit = subprocess.run(
        ("btrfs", "qgroup", "limit", "8M", place / "one"), stderr=subprocess.DEVNULL
    )
    assert (limit.returncode == 0) == (quota != "none")
    if quota != "none":
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            (place / "one/file").write_bytes(bytes(16 * MIB))


def test_quotas_that_are_best_here(site: Site, wanted: Record, place: Path) -> None:
    manage.setup(site, wanted)
    best: Quota = "simple" if SIMPLE.exists() else "none"
    assert quota_of(place) == best
    assert not manage.setup(site, replace(wanted, quota=best)).starts_at_boot
    with pytest.raises(FailedPrecondition, match=f"quotas {best}, not full"):
        manage.setup(site, replace(wanted, quota="full"))


def test_another_one_is_not_taken_for_it(site: Site, wanted: Record, tmp_path: Path) -> None:
    manage.setup(site, wanted)
    for other, difference in (
        (replace(wanted, size=2 * SIZE), f"size {SIZE} bytes, not {2 * SIZE} bytes"),
        (replace(wanted, file="/other/btrfs.img"), f"file {wanted.file}, not /other/btrfs.img"),
        (replace(wanted, place="/other"), f"place {wanted.place}, not /other"),
    ):
        with pytest.raises(FailedPrecondition, match=difference):
            manage.setup(site, other)
    assert manage.setup(site, wanted).was_there


def test_place_on_a_btrfs_needs_nothing(tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.btrfs", "-q") as disk:
        command = Command(disk / "root")
        assert "nothing is needed" in command.error(*SETUP, code=4)
        report = command.json("btrfs", "status", "--json")
        assert (report["State"], report["File"]) == ("other", None)
        assert report["Space"]["Quota"] == "none"
        assert_gone(command.root)


def test_nothing_is_hidden(site: Site, wanted: Record, place: Path) -> None:
    place.mkdir(parents=True)
    (place / "snapshots.sqlite").touch()
    with pytest.raises(FailedPrecondition, match=r"snapshots\.sqlite.*would be hidden"):
        manage.setup(site, wanted)
    (place / "snapshots.sqlite").unlink()
    with pytest.raises(InvalidArgument, match="hide its own file"):
        manage.setup(site, replace(wanted, file=str(place / "btrfs.img")))
    file = Path(wanted.file)
    file.write_text("precious")
    with pytest.raises(AlreadyExists, match="--dir"):
        manage.setup(site, wanted)
    assert file.read_text() == "precious"
    file.unlink()
    assert site.records.get() is None


def test_sizes_that_cannot_be(command: Command, tmp_path: Path) -> None:
    for size in ("64M", str(SMALLEST - 1)):
        said = command.error("btrfs", "setup", "--loop", size, code=2)
        assert "109.0 MiB at least" in said
        assert len(said.splitlines()) == 1  # nothing was begun
    assert_gone(command.root)
    command.run("btrfs", "setup", "--loop", str(SMALLEST))
    command.run("btrfs", "teardown")
    with mounted(tmp_path, "mkfs.ext4", "-q") as disk:
        said = command.error("btrfs", "setup", "--loop", "20000T", "--dir", disk, code=2)
        assert "no files that large" in said
        assert len(said.splitlines()) == 1
        assert not list(disk.glob("btrfs*"))
    assert_gone(command.root)


def test_disk_that_is_too_small_is_warned_of(command: Command, tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q") as disk:
        said = command.run("btrfs", "setup", "--loop", "1G", "--dir", disk).stderr.decode()
        assert f"warning: {disk} has " in said
        assert "less than the 1.0 GiB that the filesystem may come to take" in said
        command.run("btrfs", "teardown")


def test_directory_of_two_lines(command: Command, tmp_path: Path) -> None:
    said = command.error(*SETUP, "--dir", f"{tmp_path}/two\nlines", code=2)
    assert "control character" in said
    assert len(said.splitlines()) == 1
    assert not command.root.exists()


def test_directory_that_is_a_file(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for directory in (file, file / "below"):
        said = command.error(*SETUP, "--dir", directory, code=2)
        assert f"{file} is no directory" in said
        assert_gone(command.root)
    said = Command(file).error(*SETUP, code=1)
    assert "record the btrfs of" in said
    assert "--root" in said


def test_teardown_gives_a_full_disk_room(command: Command, tmp_path: Path) -> None:
    command.root = tmp_path / "full"
    command.root.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=8m", "none", command.root), check=True)
    try:
        said = command.run(*SETUP).stderr.decode()
        assert f"warning: {command.root}/btrfs has " in said
        with suppress(OSError), (command.root / "filler").open("wb") as filler:
            while filler.write(bytes(4096)):
                filler.flush()
        command.run("btrfs", "teardown")
        assert sorted(path.name for path in (command.root / "btrfs").iterdir()) == ["lock"]
        assert not list(command.root.glob("io.*"))
    finally:
        subprocess.run(("umount", command.root), check=True)


def test_what_fails_on_a_full_disk_is_undone(command: Command, tmp_path: Path) -> None:
    command.root = tmp_path / "full"
    command.root.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=3m", "none", command.root), check=True)
    try:
        said = command.run("btrfs", "setup", "--loop", "1G", code=11).stderr.decode()
        assert "not all was undone" not in said
        assert [path.name for path in (command.root / "btrfs").iterdir()] == ["lock"]
    finally:
        subprocess.run(("umount", command.root), check=True)


def test_what_is_missing_is_named(command: Command, site: Site, wanted: Record) -> None:
    done = command.run(*SETUP, code=11, env={"PATH": "/nonexistent"})
    assert "mkfs.btrfs is not installed; apt-get install btrfs-progs\n" in done.stderr.decode()
    assert_gone(command.root)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionDenied, match="run as root"):
            manage.setup(site, wanted)
    finally:
        os.seteuid(0)


def test_snapshots_stay_unless_forced(
    site: Site, wanted: Record, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manage.setup(site, wanted)
    with opened(place) as engine:
        engine.prepare("key one", "")
        with pytest.raises(FailedPrecondition, match="stop `lamina serve`"):
            manage.teardown(site, force=True)
    report = read_status(site.records.get(), place)
    assert report.space is not None
    assert report.space.snapshots == 1
    for prepare in (lambda: None, lambda: manage.deactivate(site)):
        prepare()
        with pytest.raises(FailedPrecondition, match=r"--force would lose 1 snapshot \(key one\)"):
            manage.teardown(site, force=False)
    manage.teardown(site, force=True)
    assert "lost: 1 snapshot (key one)" in caplog.text
    assert_gone(site.root)


def test_empty_records_are_no_loss(site: Site, wanted: Record, place: Path) -> None:
    manage.setup(site, wanted)
    with opened(place) as engine:
        engine.prepare("key one", "")
        engine.remove("key one")
    manage.teardown(site, force=False)
    assert_gone(site.root)


def test_what_is_mounted_stays_unless_forced(
    site: Site, wanted: Record, place: Path, tmp_path: Path
) -> None:
    manage.setup(site, wanted)
    with opened(place):
        pass
    (place / "one").mkdir()
    with bind(place / "one", tmp_path / "outside"), bind(tmp_path, place / "inside"):
        for function in (manage.deactivate, lambda site: manage.teardown(site, force=False)):
            with pytest.raises(FailedPrecondition, match=r"/outside, .*/inside"):
                function(site)
        report = read_status(site.records.get(), place)
        assert report.space is not None
        assert report.space.mounts == (str(tmp_path / "outside"), str(place / "inside"))
        manage.teardown(site, force=True)
    assert_gone(site.root)


def test_data_of_somebody_else_stays_unless_forced(site: Site, wanted: Record, place: Path) -> None:
    manage.setup(site, wanted)
    (place / "precious").touch()
    with pytest.raises(FailedPrecondition, match=r"somebody else has put there \(precious\)"):
        manage.teardown(site, force=False)
    manage.teardown(site, force=True)


def has_effect(module: str, _function: str) -> bool:
    """Choose whatever may have changed something."""
    return module.startswith(WITH_EFFECT) and module != "lamina.linux.mountinfo"


def test_killed_anywhere(site: Site, wanted: Record, place: Path) -> None:
    def setup() -> None:
        manage.setup(site, wanted)

    def teardown() -> None:
        manage.teardown(site, force=False)

    (site.root / "system/run/systemd/system").mkdir(parents=True)
    kills = 0
    number = 1
    while killed(setup, number, has_effect):
        setup()
        record = site.records.get()
        assert record is not None
        assert record.state == "ready"
        assert str(place) in mount_points()
        teardown()
        assert_gone(site.root)
        kills += 1
        number += STEP
    number = 1
    setup()
    while killed(teardown, number, has_effect):
        with suppress(NotFound):
            teardown()
        assert_gone(site.root)
        setup()
        kills += 1
        number += STEP
    assert kills > 10


def test_half_made_is_told_of(site: Site, wanted: Record, place: Path) -> None:
    (site.root / "btrfs").mkdir(parents=True)
    making, removing = replace(wanted, state="making"), replace(wanted, state="removing")
    for record, verb in ((making, "setup"), (removing, "teardown")):
        site.records.write(record)
        with pytest.raises(FailedPrecondition, match=f"lamina btrfs {verb}"):
            manage.activate(site)
        assert read_status(site.records.get(), place).state == record.state
    manage.setup(site, wanted)
    assert str(place) in mount_points()


def test_the_snapshotter_works_on_it(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    place = tmp_path / "elsewhere"
    section = '[plugins."io.containerd.snapshotter.v1.btrfs"]'
    config.write_text(f'version = 3\n{section}\n  root_path = "{place}"\n')
    snapshots = ("--config", config, "snapshots", "--snapshotter", "btrfs")
    assert "lamina btrfs setup" in command.error(*snapshots, "prepare", "key", code=7)
    command.run("--config", config, *SETUP)
    assert str(place) in mount_points()
    command.run(*snapshots, "prepare", "key")
    (source,) = {
        mount["Source"] for mount in command.json(*snapshots, "mounts", "--json", "/at", "key")
    }
    report = command.json("btrfs", "status", "--json")
    assert (report["Space"]["Snapshots"], report["Space"]["Device"]) == (1, source)
    assert "1 snapshot (key)" in command.error("btrfs", "teardown", code=7)
    command.run(*snapshots, "rm", "key")
    command.run("btrfs", "teardown")
    assert_gone(command.root)
    assert not place.exists()
