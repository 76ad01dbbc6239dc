"""`lamina zfs` on a real kernel, and an image and a container on what it has set up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.config import Config
from lamina.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from lamina.linux.zfs import exists
from lamina.mount import mount_all, unmount
from lamina.provision.unit import BootUnit
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.zfs.datasets import Datasets, property_of
from lamina.snapshotters.zfs.plugin import PLUGIN, ZfsConfig
from lamina.store import Store
from lamina.tools import zfs as tool
from lamina.zpool import manage
from lamina.zpool.manage import Site
from lamina.zpool.record import Record, Records
from lamina.zpool.status import read_status
from tests.archives import gnu_tar
from tests.containerd.test_proxy import push
from tests.fixtures_command import Command
from tests.fixtures_containers import make_rootfs
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_zfs import dataset_at, pool_name
from tests.hard_image import NAME, chain, copied, hard_image, load_image, names, tree
from tests.images import OCI_LAYER, Layer, digest
from tests.isolation import mount_points

pytestmark = [pytest.mark.zfs, pytest.mark.root]

MIB = 1 << 20
SNAPSHOTTER = ("--snapshotter", "zfs")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = tmp_path / "root"
    return Site(
        records=Records(root),
        root=root,
        program=("lamina",),
        unit=lambda name: BootUnit(name, root=root / "system"),
        say=lambda _: None,
    )


@pytest.fixture
def wanted(site: Site) -> Iterator[Record]:
    """A pool to be made; it is torn down after the test."""
    name = pool_name()
    place = site.root / PLUGIN.uri
    file = site.root / "zfs/file.zpool"
    yield Record(pool=name, file=str(file), size=128 * MIB, mountpoint=str(place))
    if site.records.get() is not None:
        manage.teardown(site, force=True)
    assert not exists(name)


def open_engine(record: Record) -> Engine:
    root = Path(record.mountpoint)
    return Engine("zfs", PLUGIN.load(ZfsConfig(), root), root, sync_remove=True)


def test_setup_twice_and_teardown(site: Site, wanted: Record, tmp_path: Path) -> None:
    made = manage.setup(site, wanted)
    assert not made.was_there
    assert not made.starts_at_boot
    again = manage.setup(site, wanted)
    assert again.was_there
    assert again.record == made.record == site.records.get()
    for other in (replace(wanted, size=wanted.size * 2), replace(wanted, pool="other")):
        with pytest.raises(FailedPrecondition, match="teardown"):
            manage.setup(site, other)

    work = tmp_path / "work"
    work.mkdir()
    with open_engine(wanted) as engine:
        mount_all(engine.prepare("precious"), work)
    with pytest.raises(FailedPrecondition, match=str(work)):
        manage.deactivate(site)
    with pytest.raises(FailedPrecondition, match=str(work)):
        manage.teardown(site, force=True)
    unmount(work)

    manage.deactivate(site)
    assert not exists(wanted.pool)
    assert manage.activate(site) == (wanted.pool, True)
    assert manage.activate(site) == (wanted.pool, False)
    with open_engine(wanted) as engine:
        assert [info.name for info in engine.walk()] == ["precious"]
        with pytest.raises(FailedPrecondition, match="lamina serve"):
            manage.deactivate(site)
    report = read_status(Path(wanted.mountpoint), file=wanted.file)
    assert (report.pool.health, report.dataset, report.datasets) == ("ONLINE", wanted.pool, 1)

    with pytest.raises(FailedPrecondition, match=r"1 snapshot \(precious\)"):
        manage.teardown(site, force=False)
    manage.teardown(site, force=True)
    assert not exists(wanted.pool)
    assert [path.name for path in site.root.glob("*/*")] == ["lock"]
    assert not Path(wanted.mountpoint).exists()


def test_what_an_interrupted_run_has_left_is_finished(site: Site, wanted: Record) -> None:
    with site.records.locked():
        site.records.write(wanted)
    Path(wanted.file).write_bytes(b"half of it")
    assert not manage.setup(site, wanted).was_there
    site.records.write(wanted)  # killed after the last step
    guid = property_of(wanted.pool, "guid")
    tool.export_pool(wanted.pool)
    assert not manage.setup(site, wanted).was_there
    assert property_of(wanted.pool, "guid") == guid
    site.records.write(replace(wanted, state="removing"))
    assert not manage.setup(site, wanted).was_there
    assert property_of(wanted.pool, "guid") != guid


def test_what_is_not_ours_is_refused(site: Site, wanted: Record, zpool: str) -> None:
    def refusal(record: Record) -> str:
        with pytest.raises((AlreadyExists, FailedPrecondition, InvalidArgument)) as raised:
            manage.setup(site, record)
        assert site.records.get() is None
        return str(raised.value)

    assert "--pool" in refusal(replace(wanted, pool=zpool))
    assert "at least 64.0 MiB" in refusal(replace(wanted, size=MIB))
    file, place = Path(wanted.file), Path(wanted.mountpoint)
    file.write_text("precious")
    assert "--dir" in refusal(wanted)
    assert file.read_text() == "precious"
    file.unlink()
    (place / "snapshots").mkdir(parents=True)
    assert "root_path" in refusal(wanted)
    (place / "snapshots").rmdir()
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", place), check=True)
    assert "something is mounted there" in refusal(wanted)
    unmount(place)
    manage.setup(site, wanted)
    subprocess.run(("zfs", "set", f"{manage.OWNER}=/elsewhere", wanted.pool), check=True)
    with pytest.raises(FailedPrecondition, match="/elsewhere"):
        manage.teardown(site, force=True)
    subprocess.run(("zfs", "set", f"{manage.OWNER}={site.root}", wanted.pool), check=True)


@pytest.fixture
def reference(registry: LocalRegistry, tmp_path: Path) -> str:
    """An image of which the upper layer replaces a file of the lower one."""
    directory = tmp_path / "busybox"
    directory.mkdir()
    make_rootfs(directory)
    (directory / "etc/changed").write_text("below")
    plain = gnu_tar(directory)
    above = Layer.of({"etc/changed": b"above\n"})
    return push(registry, Layer(plain, digest(plain), OCI_LAYER), above)


@pytest.mark.registry
@pytest.mark.runtime
def test_image_and_container(command: Command, reference: str, container_id: str) -> None:
    name = pool_name()
    command.seconds = 240
    command.run("zfs", "setup", "--loop", "256M", "--pool", name)
    try:
        command.run("images", "pull", "--plain-http", *SNAPSHOTTER, reference)
        look = "cat /etc/changed; mount | grep ' / '"
        said = command.out("run", "--rm", *SNAPSHOTTER, reference, container_id, "sh", "-c", look)
        assert said.startswith(f"above\n{name}/")
        assert command.out("fsck") == ""
        assert command.json("zfs", "status", "--json")["Datasets"] == 2
        assert "2 snapshots" in command.error("zfs", "teardown", code=7)
    finally:
        command.run("zfs", "teardown", "--force")
    assert not [point for point in mount_points() if point.startswith(str(command.root))]


def test_images_migrate_to_zfs_and_back(tmp_path: Path, zpool: str) -> None:
    layers = hard_image()
    directory = tmp_path / "root"
    directory.mkdir()
    with (
        dataset_at(zpool, directory / PLUGIN.uri) as dataset,
        Store(directory, config=Config()) as store,
    ):
        load_image(store, "overlayfs", *layers)
        assert copied(store.migrate(NAME, "overlayfs", "zfs")) == [True] * 4
        ids = chain(store)
        trees = [tree(store, "overlayfs", chain_id) for chain_id in ids]
        assert [tree(store, "zfs", chain_id) for chain_id in ids] == trees
        store.snapshotter("overlayfs").remove(ids[3])
        back = store.migrate(NAME, "zfs", "overlayfs", remove_source=True)
        assert copied(back) == [False, False, False, True]
        assert back.left == ()
        assert tree(store, "overlayfs", ids[3]) == trees[3]
        assert names(store, "zfs") == set()
        store.cleanup()
        assert Datasets(dataset).ids() == []
