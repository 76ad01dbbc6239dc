"""The devmapper snapshotter: what is mounted, what is full, what others do to the pool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from shutil import rmtree

import pytest

from lamina.core.driver import Snapshot
from lamina.core.snapshot import Kind
from lamina.errors import DataLoss, FailedPrecondition, ResourceExhausted, SnapshotterSkipped
from lamina.linux.dm import DeviceMapper, Target, node, thin
from lamina.linux.dm.thin import PoolMode
from lamina.mount import temp_mount
from lamina.snapshotters.devmapper.census import count_devices
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, RANGE
from lamina.snapshotters.devmapper.plugin import PLUGIN
from lamina.snapshotters.devmapper.pool import Pool
from lamina.snapshotters.engine import Engine
from tests.fixtures_thin_pool import BLOCK_SECTORS, SECTOR, ThinPool, active_pool
from tests.vm.devmapper import (
    NAME,
    active_devices,
    all_thin_ids,
    check_layers,
    commit,
    devices_of,
    dmsetup,
    fill,
    lease_ids,
    load,
    open_engine,
    range_of,
    remove_all,
    thin_ids,
)

pytestmark = [pytest.mark.dm(boot="devmapper"), pytest.mark.root]

MIB = 1 << 20


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


@pytest.fixture
def engine(thin_pool: ThinPool, root_dir: Path) -> Iterator[Engine]:
    with open_engine(thin_pool, root_dir) as opened:
        yield opened


def pool_mode(pool: ThinPool) -> PoolMode:
    with DeviceMapper() as dm:
        return thin.pool_status(dm, pool.name).mode


def test_devices_have_containerds_names_and_mounts(engine: Engine, thin_pool: ThinPool) -> None:
    (mount,) = engine.prepare("a")
    assert mount == ("ext4", f"/dev/mapper/{thin_pool.name}-snap-1", "", ())
    (mount,) = engine.view("v")
    assert mount == ("ext4", f"/dev/mapper/{thin_pool.name}-snap-2", "", ("ro",))
    engine.commit("layer", "a")
    assert active_devices(thin_pool) == {"snap-2"}
    assert engine.usage("layer").size == 0


def test_start_says_what_containerd_says(
    thin_pool: ThinPool, root_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load(thin_pool, root_dir).close()
    assert caplog.messages == [
        'loading plugin "io.containerd.snapshotter.v1.devmapper"...',
        f'initializing pool device "{thin_pool.name}"',
    ]
    assert thin_ids(thin_pool) == set()


def test_pool_that_is_none(thin_pool: ThinPool, root_dir: Path) -> None:
    with pytest.raises(SnapshotterSkipped, match=r"no pool device nothing: .*lamina devmapper"):
        PLUGIN.load(DevmapperConfig(pool_name="nothing", base_image_size="1g"), root_dir)
    name = f"{thin_pool.name}-zero"
    with DeviceMapper() as dm:
        dm.activate(name, [Target(0, 8, "zero", "")])
    with pytest.raises(FailedPrecondition, match="no thin pool"):
        PLUGIN.load(DevmapperConfig(pool_name=name, base_image_size="1g"), root_dir)
    assert not root_dir.exists()


@pytest.mark.parametrize("filesystem", ["ext2", "ext4", "xfs"])
def test_base_of_a_usual_size(
    filesystem: str, thin_pool: ThinPool, root_dir: Path, work: Path
) -> None:
    with closing(load(thin_pool, root_dir, size="3GiB", filesystem=filesystem)) as driver:
        base = Snapshot(1, Kind.ACTIVE)
        driver.create(base)
        with temp_mount(driver.mounts(base), dir=work) as root:
            assert list(root.iterdir()) == []
            assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize > 2.8 * 1024 * MIB
    assert free_bytes(thin_pool) > 160 * MIB


def test_usage_is_what_the_snapshot_has_mapped(engine: Engine, work: Path) -> None:
    with temp_mount(engine.prepare("a"), dir=work) as root:
        (root / "file").write_bytes(os.urandom(8 * MIB))
    assert 8 * MIB <= engine.usage("a").size < 10 * MIB
    engine.commit("base", "a")
    assert 8 * MIB <= engine.usage("base").size < 10 * MIB
    engine.prepare("b", "base")
    assert engine.usage("b").size < MIB


def test_commit_of_what_is_mounted(engine: Engine, work: Path, thin_pool: ThinPool) -> None:
    with temp_mount(engine.prepare("a"), dir=work) as root:
        (root / NAME).write_text("layer")
        engine.commit("layer", "a")
        (root / NAME).write_text("later")
        check_layers(engine, work)
    check_layers(engine, work)
    engine.sync()
    assert len(thin_ids(thin_pool)) == 2  # with the template


def test_live_snapshot_is_copied_as_it_is(thin_pool: ThinPool, root_dir: Path, work: Path) -> None:
    driver = load(thin_pool, root_dir)
    live = Snapshot(1, Kind.ACTIVE)
    driver.create(live)
    with temp_mount(driver.mounts(live), dir=work) as root:
        (root / NAME).write_text("before")
        copy = Snapshot(2, Kind.ACTIVE, (1,))
        driver.create(copy)
        (root / NAME).write_text("after")
        with temp_mount(driver.mounts(copy), dir=work) as other:
            assert (other / NAME).read_text() == "before"
    driver.close()


def test_removal_of_what_is_mounted(engine: Engine, work: Path, thin_pool: ThinPool) -> None:
    with temp_mount(engine.prepare("a"), dir=work) as root:
        engine.remove("a")
        (root / "still").write_text("there")
        engine.prepare("a")
        assert engine.pending()
    engine.cleanup()
    assert active_devices(thin_pool) == {"snap-2"}
    assert len(thin_ids(thin_pool)) == 2


def test_threads_at_once(engine: Engine, work: Path) -> None:
    commit(engine, work, "base")

    def life(number: int) -> None:
        name = f"layer {number}"
        fill(engine.prepare(name, "base" if number % 2 else ""), work, name)
        engine.commit(f"{name} done", name)
        engine.remove(f"{name} done")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(life, range(24)))
    remove_all(engine)


def test_restart_of_the_machine(tmp_path: Path, root_dir: Path, work: Path) -> None:
    with active_pool(tmp_path) as pool, open_engine(pool, root_dir, boot="one") as engine:
        commit(engine, work, "base")
        engine.sync()
        commit(engine, work, "unsynced", "base")
        fill(engine.prepare("active", "base"), work, "active")
        engine.view("view", "base")
    with active_pool(tmp_path) as again:  # under another name: the files are what counts
        assert active_devices(again) == set()
        with open_engine(again, root_dir, boot="two") as engine:
            assert {info.name for info in engine.walk()} == {"base", "active", "view"}
            check_layers(engine, work)
            with temp_mount(engine.mounts("active"), dir=work) as root:
                assert (root / NAME).read_text() == "active"
            assert engine.usage("view").size == 0
            remove_all(engine)
        assert len(thin_ids(again)) == 1


def test_numbers_that_others_have_taken_stay_theirs(thin_pool: ThinPool, engine: Engine) -> None:
    engine.prepare("a")
    taken = range_of(engine) + 3
    dmsetup("message", thin_pool.name, "0", f"create_thin {taken}")
    engine.prepare("b")
    remove_all(engine)
    assert thin_ids(thin_pool) == {range_of(engine) + 1, taken}  # with the template
    engine.prepare("c")
    assert devices_of(engine).snapshots()[3] == taken + 2


def test_second_root_on_one_pool(thin_pool: ThinPool, tmp_path: Path, work: Path) -> None:
    with open_engine(thin_pool, tmp_path / "one") as first:
        commit(first, work, "base")
        first.prepare("a")  # number 2
        with open_engine(thin_pool, tmp_path / "two") as second:
            second.view("v")
            with pytest.raises(FailedPrecondition, match="something else has this name"):
                second.prepare("a")
            remove_all(second)
        check_layers(first, work)
        assert "snap-2" in active_devices(thin_pool)


def test_device_of_that_name_is_left_alone(engine: Engine, thin_pool: ThinPool) -> None:
    name = f"{thin_pool.name}-snap-1"
    with DeviceMapper() as dm:
        dm.activate(name, [Target(0, 8, "zero", "")])
        with pytest.raises(FailedPrecondition, match=f"dmsetup table {name}"):
            engine.prepare("a")
        assert dm.table(name)[0].type == "zero"
    engine.prepare("a")


def test_layer_whose_device_is_gone(engine: Engine, thin_pool: ThinPool, work: Path) -> None:
    commit(engine, work, "base")
    (device,) = devices_of(engine).snapshots().values()
    dmsetup("message", thin_pool.name, "0", f"delete {device}")
    with pytest.raises(DataLoss, match="lamina fsck"):
        engine.prepare("a", "base")
    engine.remove("base")
    engine.cleanup()


def test_census_is_thin_dumps(thin_pool: ThinPool) -> None:
    with DeviceMapper() as dm:
        pool = Pool(dm, thin_pool.name)
        assert count_devices(pool) == {}
        ids = {0, 1, thin.MAX_DEVICE_ID, *range(5000, 5600, 2)}
        for id in ids:
            thin.create_thin(dm, thin_pool.name, id)
        assert set(count_devices(pool)) == ids == all_thin_ids(thin_pool)
        with pool.active(5000, 2048) as name:
            node(name).write_bytes(bytes(MIB))
        assert count_devices(pool)[5000].mapped_blocks == MIB // SECTOR // BLOCK_SECTORS


def test_check_tells_of_what_nobody_knows(
    engine: Engine, thin_pool: ThinPool, root_dir: Path, work: Path
) -> None:
    commit(engine, work, "base")
    stranger = (range_of(engine) + RANGE - FIRST_DEVICE_ID) % (240 * RANGE) + FIRST_DEVICE_ID + 100
    dmsetup("message", thin_pool.name, "0", f"create_thin {stranger}")
    dmsetup("message", thin_pool.name, "0", "create_thin 5")  # out of all ranges
    (problem,) = engine.fsck()
    assert f"delete {stranger}" in problem.fix
    assert problem.repair is None
    dmsetup("message", thin_pool.name, "0", f"delete {stranger}")

    with closing(load(thin_pool, root_dir)) as driver:
        driver._volumes.devices.allocate(77, sectors=8, filesystem="ext4")
        abandoned = driver._volumes.create(sectors=8, filesystem="ext4")
        forgotten = driver._volumes.create(sectors=8, filesystem="ext4")
        driver._volumes.devices.forget(forgotten.id)  # as a power loss would
    problems = engine.fsck()
    assert [problem.what.partition(";")[0] for problem in problems] == [
        "it is this root's, and no snapshot knows it",
        "it is listed for snapshot number 77",
        "no snapshot has it any more",
    ]
    repair_all(engine)
    assert not {abandoned.id, forgotten.id} & thin_ids(thin_pool)
    check_layers(engine, work)


def repair_all(engine: Engine) -> None:
    for problem in engine.fsck():
        assert problem.repair is not None
        problem.repair.run()
    assert engine.fsck() == []


def test_check_leaves_alone_what_other_roots_have(
    thin_pool: ThinPool, tmp_path: Path, work: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with open_engine(thin_pool, one) as first, open_engine(thin_pool, two) as second:
        commit(first, work, "base")
        commit(second, work, "layer")
        second.view("v")
        assert first.fsck() == []
        assert lease_ids(thin_pool) == {range_of(first), range_of(second)}
        devices = devices_of(second)
        (id,) = (id for snapshot, id in devices.snapshots().items() if snapshot == 1)
        devices.forget(id)
        assert first.fsck() == []  # it is for the other root to tell
        assert any(str(id) in problem.subject for problem in second.fsck())
        rmtree(two)
        problems = first.fsck()
    assert len(problems) == 3
    for problem in problems:
        assert problem.repair is None
        assert f"of the root {two}, which is not there" in problem.what


def test_root_that_was_made_anew_does_not_claim_what_it_had(
    thin_pool: ThinPool, root_dir: Path, work: Path
) -> None:
    with open_engine(thin_pool, root_dir) as engine:
        commit(engine, work, "base")
    rmtree(root_dir)
    with open_engine(thin_pool, root_dir) as engine:
        commit(engine, work, "other")
        assert [problem.repair for problem in engine.fsck()] == [None, None]
        check_layers(engine, work)


def test_rows_that_are_lost(thin_pool: ThinPool, root_dir: Path, work: Path) -> None:
    with open_engine(thin_pool, root_dir) as engine:
        commit(engine, work, "base")
        start = range_of(engine)
    for file in root_dir.glob("devices.sqlite*"):
        file.unlink()
    with open_engine(thin_pool, root_dir) as engine:
        problems = engine.fsck()
        assert [problem.what for problem in problems] == [
            "its storage is gone",
            *["it is this root's, and no snapshot knows it"] * 2,
        ]
        repair_all(engine)
        assert thin_ids(thin_pool) == set()
        commit(engine, work, "again")
        assert (range_of(engine), lease_ids(thin_pool)) == (start, {start})
        check_layers(engine, work)


def test_pool_made_anew_in_which_another_root_has_the_numbers(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.shuffle", lambda starts: None)  # the same one always
    mine, others = tmp_path / "mine", tmp_path / "others"
    with active_pool(tmp_path) as pool, open_engine(pool, mine) as engine:
        engine.prepare("a")
    for file in ("pool.data", "pool.metadata"):
        (tmp_path / file).unlink()
    with active_pool(tmp_path) as pool:
        with open_engine(pool, others) as other:
            other.view("v")  # number 1 is that of the snapshot above
        with open_engine(pool, others) as other, open_engine(pool, mine) as engine:
            commit(engine, work, "base")
            remove_all(engine)
            assert range_of(engine) != range_of(other)
            assert other.fsck() == engine.fsck() == []


def test_check_tells_of_layers_that_are_gone(
    engine: Engine, thin_pool: ThinPool, work: Path
) -> None:
    commit(engine, work, "base")
    (device,) = devices_of(engine).snapshots().values()
    dmsetup("message", thin_pool.name, "0", f"delete {device}")
    (problem,) = engine.fsck()
    assert (problem.subject, problem.what) == ("base", "its storage is gone")
    assert problem.repair is not None
    problem.repair.run()
    assert engine.fsck() == []
    assert list(engine.walk()) == []


def test_pool_that_was_made_anew(tmp_path: Path, root_dir: Path, work: Path) -> None:
    with active_pool(tmp_path) as pool, open_engine(pool, root_dir) as engine:
        engine.prepare("a")
    for file in ("pool.data", "pool.metadata"):
        (tmp_path / file).unlink()
    with active_pool(tmp_path) as pool, open_engine(pool, root_dir) as engine:
        with pytest.raises(DataLoss):
            engine.mounts("a")
        commit(engine, work, "base")
        check_layers(engine, work)
        remove_all(engine)


def fail_when_full(pool: ThinPool) -> None:
    table = pool.table().replace("1 skip_block_zeroing", "2 skip_block_zeroing error_if_no_space")
    dmsetup("reload", pool.name, "--table", table)
    dmsetup("suspend", pool.name)
    dmsetup("resume", pool.name)


def test_pool_that_is_out_of_data(tmp_path: Path, root_dir: Path, work: Path) -> None:
    with active_pool(tmp_path, data_bytes=64 * MIB) as pool:
        fail_when_full(pool)
        with open_engine(pool, root_dir, size="128MiB") as engine:
            commit(engine, work, "base")
            mounts = engine.prepare("active", "base")
            with temp_mount(mounts, dir=work) as root:
                for number in range(20):
                    (root / f"file-{number}").write_bytes(os.urandom(4 * MIB))
                os.sync()
            assert pool_mode(pool) == PoolMode.OUT_OF_DATA_SPACE
            with pytest.raises(
                ResourceExhausted, match=r"out of data: data 100\.0% used, .*metadata"
            ):
                engine.commit("torn", "active")
            with pytest.raises(ResourceExhausted, match="extend the pool"):
                engine.prepare("more", "base")
            engine.remove("active")
            assert pool_mode(pool) == PoolMode.READ_WRITE
            check_layers(engine, work)
            commit(engine, work, "top", "base")
            check_layers(engine, work)
            remove_all(engine)


def test_pool_that_is_low_on_data(tmp_path: Path, root_dir: Path, work: Path) -> None:
    with (
        active_pool(tmp_path, data_bytes=64 * MIB) as pool,
        open_engine(pool, root_dir, size="128MiB") as engine,
    ):
        commit(engine, work, "base")
        with temp_mount(engine.prepare("active", "base"), dir=work) as root:
            (root / "file").write_bytes(os.urandom(free_bytes(pool) - 3 * MIB))
            os.sync()
            low = r"low on data: data 9\d.\d% used, \d.\d MiB free, metadata \d"
            with pytest.raises(ResourceExhausted, match=low):
                engine.view("more", "base")
        engine.remove("active")
        engine.view("more", "base")


def free_bytes(pool: ThinPool) -> int:
    with DeviceMapper() as dm:
        status = thin.pool_status(dm, pool.name)
    return (status.total_data - status.used_data) * BLOCK_SECTORS * SECTOR


def test_pool_that_is_low_on_metadata(tmp_path: Path, root_dir: Path, work: Path) -> None:
    with (
        active_pool(tmp_path, metadata_bytes=MIB // 2) as pool,
        open_engine(pool, root_dir) as engine,
    ):
        commit(engine, work, "base")
        with pytest.raises(ResourceExhausted, match=r"low on metadata: data .*metadata 9\d"):
            for number in range(200):
                fill(engine.prepare(f"active {number}", "base"), work, "x")
        assert pool_mode(pool) == PoolMode.READ_WRITE
        for number in range(4):
            engine.remove(f"active {number}")
        engine.prepare("again", "base")
        check_layers(engine, work)
        remove_all(engine)
