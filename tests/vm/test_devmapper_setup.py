"""`lamina devmapper` on a real kernel: both recipes from set-up to teardown."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ToolError
from lamina.linux.dm import SECTOR, DeviceMapper, Target, node, thin
from lamina.pool import manage, upkeep
from lamina.pool.lvm import PROFILES
from lamina.pool.manage import Site
from lamina.pool.plan import plan_loop, plan_lvm
from lamina.pool.status import read_status
from tests.filesystems import mounted
from tests.fixtures_command import Command
from tests.fixtures_thin_pool import device_name, loop_device
from tests.isolation import device_names
from tests.vm.pools import MIB, made_pool, no, open_site, yes

pytestmark = [pytest.mark.dm(boot="setup"), pytest.mark.root]
in_lvm_boot = pytest.mark.dm(boot="setup-lvm")

SMALL = ("--data-size", "64M", "--meta-size", "4m")
DISK_BYTES = 256 * MIB
BLOCK = 4096
NEEDS_CHECK = 1
SUPERBLOCK_XOR = 160774
CRC32C = 0x82F63B78


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path / "root") as opened:
        yield opened


@pytest.fixture
def name() -> str:
    return device_name("pool")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk", DISK_BYTES) as device:
        yield Path(device)


def dmsetup(*words: str) -> str:
    done = subprocess.run(("dmsetup", *words), check=True, capture_output=True, text=True)
    return done.stdout.strip()


def bound_files() -> list[str]:
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    return [path.read_text().strip() for path in backing]


def mkfs(device: Path) -> None:
    subprocess.run(("mkfs.ext4", "-q", "-L", "precious", device), check=True)


def lvs(*fields: str, group: str) -> list[str]:
    argv = ("lvm", "lvs", "--noheadings", "--separator", "|", "-o", ",".join(fields), group)
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_loop_recipe(command: Command) -> None:
    setup = ("devmapper", "setup", "--loop", *SMALL, "--image-size", "16MiB")
    first = command.run(*setup)
    assert "pool devpool is active\n" in first.stderr.decode()
    (section,) = tomllib.loads(first.stdout.decode())["plugins"].values()
    assert section == {"pool_name": "devpool", "base_image_size": "16MiB", "discard_blocks": True}
    start, sectors, kind, _metadata, _data, *rest = dmsetup("table", "devpool").split()
    assert (start, sectors, kind) == ("0", str(64 * MIB // SECTOR), "thin-pool")
    assert rest == ["128", "128", "1", "skip_block_zeroing"]
    files = [command.root / "devmapper" / f"devpool.{what}" for what in ("data", "metadata")]
    assert [file.stat().st_size for file in files] == [64 * MIB, 4 * MIB]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]

    again = command.run(*setup)
    assert "set up before" in again.stderr.decode()
    assert again.stdout == first.stdout
    report = command.json("devmapper", "status", "--json")
    assert report["Mode"] == "rw"
    assert report["Data"] == {"Used": 0, "Total": 64 * MIB}
    assert report["DataDevice"]["File"] == str(files[0])
    assert "64.0 MiB" in command.out("devmapper", "status")

    command.run("devmapper", "deactivate")
    assert device_names() == []
    assert not set(bound_files()) & set(map(str, files))
    assert "activate it" in command.error("devmapper", "status", code=3)
    command.run("devmapper", "activate")
    command.run("devmapper", "activate")

    command.run("devmapper", "teardown")
    assert device_names() == []
    assert [path.name for path in (command.root / "devmapper").iterdir()] == ["lock"]
    assert "none was set up" in command.error("devmapper", "teardown", code=3)

    assert command.run(*setup).stdout == first.stdout
    command.run("devmapper", "teardown")
    assert device_names() == []


@in_lvm_boot
def test_lvm_recipe(command: Command, disk: Path) -> None:
    mkfs(disk)
    group = device_name("vg")
    setup = ("devmapper", "setup", "--device", disk, "--vg", group, "--pool", "thin")
    said = command.error(*setup, code=7)
    assert "ext4 'precious'" in said
    assert "--wipe" in said
    assert b"precious" in disk.read_bytes()[:MIB]

    first = command.run(*setup, "--wipe")
    assert b"ext4 'precious'" in first.stderr
    (section,) = tomllib.loads(first.stdout.decode())["plugins"].values()
    device = f"{group.replace('-', '--')}-thin"
    assert section["pool_name"] == device
    assert " thin-pool " in dmsetup("table", device)
    assert lvs("lv_name", "chunk_size", "zero", "discards", group=group) == [
        "thin|64.00k||passdown"
    ]
    (profile,) = lvs("lv_profile", group=group)
    assert "threshold = 80" in (PROFILES / f"{profile}.profile").read_text()
    assert command.run(*setup).stdout == first.stdout
    command.run("devmapper", "extend", "--data-size", "232M", "--meta-size", "8M")
    assert command.json("devmapper", "status", "--json")["Mode"] == "rw"
    command.run("devmapper", "deactivate", "--pool", "thin")
    command.run("devmapper", "check")
    command.run("devmapper", "activate", "--pool", device)

    command.run("devmapper", "teardown")
    assert device_names() == []
    assert not (PROFILES / f"{profile}.profile").exists()
    assert subprocess.check_output(("wipefs", disk)) == b""

    mkfs(disk)
    assert b"is active" in answered(command, b"y", *setup)
    command.run("devmapper", "teardown")
    assert device_names() == []


def answered(command: Command, answer: bytes, *arguments: object) -> bytes:
    """Run a command on a terminal where its one question is answered; return what it says."""
    ours, terminal = os.openpty()
    try:
        os.write(ours, answer + b"\n")
        done = command.run(*arguments, code=None, stdin=terminal)
    finally:
        os.close(ours)
        os.close(terminal)
    assert b"ext4 'precious'" in done.stderr
    return done.stderr


@in_lvm_boot
@pytest.mark.skipif(shutil.which("dmeventd") is None, reason="dmeventd is not installed")
def test_lvm_extends_a_pool_that_fills_up(site: Site, disk: Path) -> None:
    group = device_name("vg")
    pool = manage.setup(site, plan_lvm("thin", group, disk, 40 * MIB, 4 * MIB), confirm=no).record
    try:
        device = activate_thin(site, pool.device, 1, size=40 * MIB)
        with device.open("wb", buffering=0) as file:
            for _ in range(36):
                file.write(bytes(MIB))
            os.fsync(file.fileno())
        deadline = time.monotonic() + 30
        while read_status(site.dm, pool.device).data_total == 40 * MIB:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert read_status(site.dm, pool.device).data_total == 48 * MIB
    finally:
        manage.teardown(site, pool.device, force=True)


@in_lvm_boot
def test_disks_that_are_refused(site: Site, disk: Path, tmp_path: Path) -> None:
    def refusal(device: Path) -> str:
        with pytest.raises((FailedPrecondition, InvalidArgument)) as raised:
            manage.setup(site, plan_lvm("thin", group, device), confirm=yes)
        assert site.records.all() == []
        return str(raised.value)

    group = device_name("vg")
    assert "no such device" in refusal(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "no block device" in refusal(tmp_path / "file")
    mkfs(disk)
    (tmp_path / "at").mkdir()
    subprocess.run(("mount", disk, tmp_path / "at"), check=True)
    try:
        assert f"mounted on {tmp_path / 'at'}" in refusal(disk)
    finally:
        subprocess.run(("umount", tmp_path / "at"), check=True)
    user = device_name("user")
    with DeviceMapper() as dm:
        dm.activate(user, [Target(0, 8, "linear", f"{disk} 0")])
        assert f"part of {user}" in refusal(disk)
        dm.remove(user)
    fd = os.open(disk, os.O_RDONLY | os.O_EXCL)
    assert "for itself" in refusal(disk)
    os.close(fd)
    with pytest.raises(FailedPrecondition, match="precious"):
        manage.setup(site, plan_lvm("thin", group, disk), confirm=no)
    assert b"precious" in disk.read_bytes()[:MIB]


def test_partitioned_disk_is_refused(site: Site, disk: Path) -> None:
    partition = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 8192)
    with disk.open("r+b") as file:
        file.write((bytes(446) + partition).ljust(510, b"\0") + b"\x55\xaa")
    with pytest.raises(FailedPrecondition, match=f"dos on {disk}"):
        manage.setup(site, plan_lvm("thin", device_name("vg"), disk), confirm=no)


def test_names_and_files_of_others_stay(site: Site, name: str, tmp_path: Path) -> None:
    plan = plan_loop(name, tmp_path, 64 * MIB, 4 * MIB)
    site.dm.activate(name, [Target(0, 8, "zero", "")])
    with pytest.raises(AlreadyExists, match=name):
        manage.setup(site, plan, confirm=no)
    site.dm.remove(name)
    file = tmp_path / f"{name}.data"
    file.write_text("somebody's")
    with pytest.raises(AlreadyExists, match="make file"):
        manage.setup(site, plan, confirm=no)
    assert file.read_text() == "somebody's"
    assert site.records.all() == []


def test_set_up_with_other_sizes_is_refused(site: Site, name: str, tmp_path: Path) -> None:
    with made_pool(site, name, tmp_path):
        assert manage.setup(site, plan_loop(name, tmp_path), confirm=no).was_there
        with pytest.raises(FailedPrecondition, match=r"bytes of data .*teardown"):
            manage.setup(site, plan_loop(name, tmp_path, 65 * MIB, 4 * MIB), confirm=no)
        with pytest.raises(FailedPrecondition, match="directory"):
            manage.setup(site, plan_loop(name, tmp_path / "b", 64 * MIB, 4 * MIB), confirm=no)


def test_files_that_cannot_be_are_refused(site: Site, name: str, tmp_path: Path) -> None:
    said: list[str] = []
    site = site._replace(say=said.append)
    with mounted(tmp_path, "mkfs.ext4", "-q") as place:
        for pool, size, why in (
            ("pool", 32 << 40, "no files that large"),
            ("two\nlines", 64 * MIB, "control character"),
        ):
            plan = plan_loop(name, place / pool, size, 4 * MIB)
            with pytest.raises(InvalidArgument, match=why):
                manage.setup(site, plan, confirm=no)
            assert not (place / pool).exists()
    assert said == []
    assert site.records.all() == []


def test_what_fails_is_undone(site: Site, name: str, tmp_path: Path) -> None:
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=8k", "none", place), check=True)
    try:
        plan = plan_loop(name, place / "pool", 64 * MIB, 4 * MIB)
        with pytest.raises(FailedPrecondition, match="activate pool"):  # it writes a superblock
            manage.setup(site, plan, confirm=no)
        assert list((place / "pool").iterdir()) == []
    finally:
        subprocess.run(("umount", place), check=True)
    assert site.records.all() == []
    assert device_names() == []


@in_lvm_boot
def test_lvm_that_fails_is_undone(site: Site, disk: Path) -> None:
    group = device_name("vg")
    with pytest.raises(ToolError, match="lvcreate"):
        manage.setup(site, plan_lvm("a_tdata", group, disk), confirm=yes)
    assert subprocess.check_output(("wipefs", disk)) == b""
    assert site.records.all() == []
    assert not list(PROFILES.glob(f"*{group.replace('-', '--')}*"))


@in_lvm_boot
def test_disk_that_is_too_small_is_not_wiped(site: Site, disk: Path) -> None:
    mkfs(disk)
    with pytest.raises(InvalidArgument, match="--data-size"):
        manage.setup(site, plan_lvm("thin", device_name("vg"), disk, 1 << 40), confirm=yes)
    assert b"precious" in disk.read_bytes()[:MIB]
    assert site.records.all() == []


def activate_thin(
    site: Site, pool: str, id: int, *, new: bool = True, size: int = 32 * MIB
) -> Path:
    """Make a thin device visible."""
    if new:
        thin.create_thin(site.dm, pool, id)
    number = site.dm.info(pool).number
    target = thin.thin_target(pool=number, device_id=id, sectors=size // SECTOR)
    site.dm.activate(f"{pool}-snap-{id}", [target])
    return node(f"{pool}-snap-{id}")


def test_pool_in_use_stays_unless_forced(site: Site, name: str, tmp_path: Path) -> None:
    with made_pool(site, name, tmp_path):
        device = activate_thin(site, name, 1)
        mkfs(device)
        (tmp_path / "at").mkdir()
        subprocess.run(("mount", device, tmp_path / "at"), check=True)
        try:
            with pytest.raises(FailedPrecondition, match=f"{device.name} .*{tmp_path / 'at'}"):
                manage.teardown(site, name, force=False)
            with pytest.raises(FailedPrecondition, match=device.name):
                manage.deactivate(site, name)
            for function in (upkeep.check, upkeep.repair):
                with pytest.raises(FailedPrecondition, match="lamina devmapper deactivate"):
                    function(site, site.records.find(name))
            assert (device.name, 1) in [
                (each.device.name, each.device.open_count)
                for each in read_status(site.dm, name).devices
            ]
            manage.teardown(site, name, force=True)
        finally:
            subprocess.run(("umount", tmp_path / "at"), check=True)
    assert device_names() == []
    assert not list(tmp_path.glob(f"{name}.*"))


def test_full_pool_is_extended(command: Command) -> None:
    command.run("devmapper", "setup", "--loop", "--data-size", "16M", "--meta-size", "2M")
    with open_site(command.root) as site:
        device = activate_thin(site, "devpool", 1)
        writer = subprocess.Popen(("dd", "if=/dev/zero", f"of={device}", "bs=1M", "count=24"))
        while read_status(site.dm, "devpool").mode is not thin.PoolMode.OUT_OF_DATA_SPACE:
            assert writer.poll() is None
            time.sleep(0.1)
        said = command.out("devmapper", "extend", "--data-size", "64M", "--meta-size", "4M")
        assert "64.0 MiB, with 4.0 MiB of metadata" in said
        assert writer.wait() == 0
        report = read_status(site.dm, "devpool")
        assert report.mode is thin.PoolMode.READ_WRITE
        assert (report.data_total, report.metadata_total) == (64 * MIB, 4 * MIB)
        again = ("devmapper", "extend", "--data-size", "64M")
        assert "cannot become smaller" in command.error(*again, code=2)
        manage.deactivate(site, "devpool")
    command.run("devmapper", "setup", "--loop", "--data-size", "64M")
    with open_site(command.root) as site:
        assert read_status(site.dm, "devpool").data_total == 64 * MIB
    command.run("devmapper", "teardown", "--force")


def test_snapshots_stay_unless_forced(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    snapshots = ("--config", config, "snapshots", "--snapshotter", "devmapper")
    for turn in ("first", "second"):
        section = command.out("devmapper", "setup", "--loop", *SMALL, "--image-size", "16MiB")
        config.write_text(f"version = 3\n{section}")
        command.run(*snapshots, "prepare", f"key {turn}")
        said = command.error("devmapper", "teardown", code=7)
        assert f"--force would lose 1 snapshot (key {turn})" in said
        if turn == "first":
            done = command.run("devmapper", "teardown", "--force")
            assert "lost: 1 snapshot (key first)" in done.stderr.decode()
            assert command.json("snapshots", "--snapshotter", "overlayfs", "ls", "--json") == []
    command.run(*snapshots, "rm", "key second")
    command.run("--config", config, "devmapper", "teardown")
    assert device_names() == []
    assert not (command.root / "io.containerd.snapshotter.v1.devmapper").exists()


def test_data_of_somebody_else_stays_unless_forced(site: Site, name: str, tmp_path: Path) -> None:
    with made_pool(site, name, tmp_path):
        mkfs(activate_thin(site, name, 1))
        subprocess.run(("sync",), check=True)
        records = tmp_path / "root/io.containerd.snapshotter.v1.devmapper"
        for prepare in (lambda: None, records.mkdir, lambda: manage.deactivate(site, name)):
            prepare()
            with pytest.raises(FailedPrecondition, match="1 device that somebody else"):
                manage.teardown(site, name, force=False)
        manage.deactivate(site, name)
        assert device_names() == []


def test_trim_gives_space_back(site: Site, name: str, tmp_path: Path) -> None:
    with made_pool(site, name, tmp_path) as record:
        device = activate_thin(site, name, 1)
        mkfs(device)
        (tmp_path / "at").mkdir()
        subprocess.run(("mount", device, tmp_path / "at"), check=True)
        try:
            (tmp_path / "at/file").write_bytes(os.urandom(8 * MIB))
            os.sync()
            (tmp_path / "at/file").unlink()
            os.sync()
            trimmed = upkeep.trim(site, record)
        finally:
            subprocess.run(("umount", tmp_path / "at"), check=True)
        assert trimmed is not None
        assert trimmed.filesystems[str(tmp_path / "at")]
        assert trimmed.before - trimmed.after >= 7 * MIB

        device.write_bytes(os.urandom(16 * MIB))
        os.sync()
        site.dm.remove(device.name)
        thin.delete(site.dm, name, 1)
        manage.deactivate(site, name)
        file = tmp_path / f"{name}.data"
        before = file.stat().st_blocks * 512
        assert upkeep.trim(site, record) is None
        assert before - file.stat().st_blocks * 512 >= 15 * MIB


def damage(metadata: Path) -> None:
    """Zero the first block, not the superblock, of which thin_check says that this is damage."""
    with loop_device(metadata, 0) as device, open(device, "r+b", buffering=0) as file:
        for start in range(BLOCK, 4 * MIB, BLOCK):
            block = os.pread(file.fileno(), BLOCK, start)
            os.pwrite(file.fileno(), bytes(BLOCK), start)
            os.fsync(file.fileno())
            checked = subprocess.run(("thin_check", "-q", device), capture_output=True)
            if checked.returncode:
                return
            os.pwrite(file.fileno(), block, start)
    raise AssertionError("nothing that thin_check minds")


def test_damaged_metadata_is_repaired(command: Command) -> None:
    command.run("devmapper", "setup", "--loop", *SMALL)
    with open_site(command.root) as site:
        activate_thin(site, "devpool", 1).write_bytes(b"content".ljust(4096))
        activate_thin(site, "devpool", 2)
        os.sync()
    assert "deactivate" in command.error("devmapper", "check", code=7)
    command.run("devmapper", "deactivate")
    assert "sound" in command.out("devmapper", "check")
    damage(command.root / "devmapper/devpool.metadata")

    assert "lamina devmapper repair" in command.error("devmapper", "check", code=13)
    said = command.out("devmapper", "repair")
    (kept,) = (command.root / "devmapper").glob("devpool.metadata.damaged-*")
    assert str(kept) in said
    assert "sound" in command.out("devmapper", "check")
    command.run("devmapper", "activate")
    with open_site(command.root) as site:
        again = activate_thin(site, "devpool", 1, new=False)
        with again.open("rb") as file:
            assert file.read(7) == b"content"
        assert read_status(site.dm, "devpool").mode is thin.PoolMode.READ_WRITE
    assert "2 devices that somebody else" in command.error("devmapper", "teardown", code=7)
    command.run("devmapper", "teardown", "--force")
    assert not kept.exists()


def mark_needs_check(metadata: Path) -> None:
    """Set the flag in the superblock, as the kernel does when metadata could not be written."""
    content = bytearray(metadata.read_bytes()[:BLOCK])
    content[4:8] = struct.pack("<I", NEEDS_CHECK)
    checksum = 0xFFFFFFFF
    for byte in content[4:]:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (CRC32C if checksum & 1 else 0)
    content[:4] = struct.pack("<I", checksum ^ SUPERBLOCK_XOR)
    with metadata.open("r+b") as file:
        file.write(content)


def test_sound_metadata_is_not_marked_any_more_after_a_check(command: Command) -> None:
    command.run("devmapper", "setup", "--loop", *SMALL)
    command.run("devmapper", "deactivate")
    mark_needs_check(command.root / "devmapper/devpool.metadata")
    said = command.run("devmapper", "activate").stderr.decode()
    assert "pool devpool takes no changes (ro, needs_check)" in said
    assert "ro, needs_check" in command.out("devmapper", "status")
    command.run("devmapper", "deactivate")
    command.run("devmapper", "check")
    command.run("devmapper", "activate")
    report = command.json("devmapper", "status", "--json")
    assert (report["Mode"], report["NeedsCheck"]) == ("rw", False)
    command.run("devmapper", "teardown")


def test_metadata_beyond_repair_stays_as_it_was(command: Command) -> None:
    command.run("devmapper", "setup", "--loop", *SMALL)
    command.run("devmapper", "deactivate")
    metadata = command.root / "devmapper/devpool.metadata"
    metadata.write_bytes(bytes(range(256)) * (4 * MIB // 256))
    before = metadata.read_bytes()
    command.run("devmapper", "repair", code=None)
    assert "dmesg" in command.error("devmapper", "activate", code=7)
    assert metadata.read_bytes() == before
    assert [path.name for path in metadata.parent.glob("devpool.metadata.*")] == []
    command.run("devmapper", "teardown", "--force")
