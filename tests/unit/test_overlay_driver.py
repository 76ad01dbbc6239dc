"""The overlayfs driver's layout and mounts; nothing is mounted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Ability
from lamina.core.labels import (
    GID_MAPPING,
    OVERLAY_UPPERDIR,
    OVERLAY_VOLATILE,
    UID_MAPPING,
)
from lamina.core.mount import Mount
from lamina.core.snapshot import Info
from lamina.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from lamina.snapshotters import overlay_support as support
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.overlayfs.driver import OverlayDriver
from lamina.snapshotters.overlayfs.plugin import OverlayConfig

Make = Callable[..., Engine]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "sn"


@pytest.fixture
def make(root: Path) -> Iterator[Make]:
    engines: list[Engine] = []

    def factory(*options: str, boot: str = "", **settings: bool) -> Engine:
        remap = settings.pop("remap", False)
        abilities = {Ability.REBASE} | ({Ability.REMAP_IDS} if remap else set())
        driver = OverlayDriver(
            root, abilities=frozenset(abilities), mount_options=options, boot=boot, **settings
        )
        engines.append(Engine("overlayfs", driver, root, boot=boot))
        return engines[-1]

    yield factory
    for engine in engines:
        engine.close()


def layers(engine: Engine, *names: str) -> None:
    parent = ""
    for name in names:
        engine.prepare("key", parent)
        engine.commit(name, "key")
        parent = name


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_layout_and_modes(make: Make, root: Path) -> None:
    previous = os.umask(0o077)
    try:
        engine = make()
        layers(engine, "base")
        engine.view("view", "base")
    finally:
        os.umask(previous)
    assert mode(root) == mode(root / "snapshots") == mode(root / "snapshots/1") == 0o700
    assert mode(root / "snapshots.sqlite") == 0o600
    assert mode(root / "snapshots/1/fs") == mode(root / "snapshots/2/fs") == 0o755
    assert mode(root / "snapshots/1/work") == 0o711
    assert not (root / "snapshots/2/work").exists()


def test_mounts(make: Make, root: Path) -> None:
    engine = make("metacopy=off", "index=off")
    dirs = root / "snapshots"
    bind = Mount("bind", f"{dirs}/1/fs", options=("rw", "rbind"))
    assert engine.prepare("one") == engine.mounts("one") == [bind]
    assert engine.view("empty") == [Mount("bind", f"{dirs}/2/fs", options=("ro", "rbind"))]
    engine.commit("layer-1", "one")
    assert engine.view("one", "layer-1") == [Mount("bind", f"{dirs}/1/fs", options=("ro", "rbind"))]
    options = (f"workdir={dirs}/4/work", f"upperdir={dirs}/4/fs", f"lowerdir={dirs}/1/fs")
    expected = [Mount("overlay", "overlay", options=(*options, "metacopy=off", "index=off"))]
    assert engine.prepare("two", "layer-1") == engine.mounts("two") == expected
    engine.commit("layer-2", "two")
    assert engine.view("both", "layer-2") == engine.mounts("both") == [
        Mount("overlay", "overlay",
              options=(f"lowerdir={dirs}/4/fs:{dirs}/1/fs", "metacopy=off", "index=off"))
    ]  # fmt: skip


def test_rebased_layers_stack_in_their_final_order(make: Make, root: Path) -> None:
    engine = make()
    for key in ("upper", "lower"):
        engine.prepare(key)
    engine.commit("lower-layer", "lower")
    engine.commit("upper-layer", "upper", parent="lower-layer")
    (mount,) = engine.view("view", "upper-layer")
    assert mount.option("lowerdir") == f"{root}/snapshots/1/fs:{root}/snapshots/2/fs"


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b"])
def test_root_with_separators_is_escaped(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    with Engine("overlayfs", OverlayDriver(root), root) as engine:
        layers(engine, "base")
        (mount,) = engine.prepare("a", "base")
    escaped = str(root).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    assert mount.option("lowerdir") == f"{escaped}/snapshots/1/fs"


MAPPINGS = [
    ("0:1000:100", "0:2000:100", (1000, 2000)),
    ("100:5000:10,0:1000:100", "0:1:1,1:2000:5", (1000, 1)),
    ("0:1000:100", None, (1000, 0)),
    (None, "0:2000:1", (0, 2000)),
]


def mapping(uids: str | None, gids: str | None) -> dict[str, str]:
    return {k: v for k, v in {UID_MAPPING: uids, GID_MAPPING: gids}.items() if v is not None}


@pytest.mark.root
@pytest.mark.parametrize(("uids", "gids", "owner"), MAPPINGS)
def test_remapped_bind(
    make: Make, root: Path, uids: str | None, gids: str | None, owner: tuple[int, int]
) -> None:
    engine = make(remap=True)
    labels = mapping(uids, gids)
    options = tuple(
        f"{name}={text}" for name, text in (("uidmap", uids), ("gidmap", gids)) if text is not None
    )
    (mount,) = engine.prepare("a", labels=labels)
    assert mount.options == (*options, "rw", "rbind")
    (mount,) = engine.view("v", labels=labels)
    assert mount.options == (*options, "ro", "rbind")
    for number in (1, 2):
        status = (root / f"snapshots/{number}/fs").stat()
        assert (status.st_uid, status.st_gid) == (0, 0), "the mount maps it"
    (mount,) = engine.prepare("sibling")
    assert mount.options == ("rw", "rbind")
    layers(engine, "base")
    engine.prepare("upper", "base", labels=labels)
    status = (root / "snapshots/5/fs").stat()
    assert (status.st_uid, status.st_gid) == owner, "upper directories are not mapped"


@pytest.mark.root
def test_remapped_active(make: Make, root: Path) -> None:
    engine = make("index=off", remap=True)
    layers(engine, "base")
    labels = {UID_MAPPING: "0:1000:10", GID_MAPPING: "0:1000:10"}
    (mount,) = engine.prepare("a", "base", labels=labels)
    dirs = root / "snapshots"
    assert mount.options == (
        "uidmap=0:1000:10", "gidmap=0:1000:10", f"workdir={dirs}/2/work", f"upperdir={dirs}/2/fs",
        f"lowerdir={dirs}/1/fs", "index=off",
    )  # fmt: skip


@pytest.mark.root
def test_mapping_without_the_ability_still_owns(make: Make, root: Path) -> None:
    (mount,) = make().prepare("a", labels={UID_MAPPING: "0:1000:10"})
    assert mount.options == ("rw", "rbind")
    assert (root / "snapshots/1/fs").stat().st_uid == 1000


@pytest.mark.root
def test_owner_of_the_parent_is_taken_over(make: Make, root: Path) -> None:
    engine = make()
    engine.prepare("key")
    os.chown(root / "snapshots/1/fs", 7, 8)
    engine.commit("base", "key")
    engine.prepare("a", "base")
    status = (root / "snapshots/2/fs").stat()
    assert (status.st_uid, status.st_gid) == (7, 8)


@pytest.mark.parametrize(
    "text",
    [
        ":", "0:0", "0:0:0", "-1:-1:-2", "0:-1:10", "-1:0:10", "1:1000:10", "0:1000:-1",
        "0:4294967295:1", "a:0:1", "0:0:1:1", "0:0:1,", "0 :0:1", "\u0660:0:1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("label", [UID_MAPPING, GID_MAPPING])
def test_invalid_mappings(make: Make, root: Path, label: str, text: str) -> None:
    engine = make(remap=True)
    with pytest.raises(InvalidArgument):
        engine.prepare("a", labels={label: text})
    with pytest.raises(NotFound):
        engine.stat("a")
    assert list((root / "snapshots").iterdir()) == []
    assert not engine.pending()


def test_upperdir_label_is_shown_and_never_stored(make: Make, root: Path) -> None:
    with make(upperdir_label=True) as engine:
        engine.prepare("a", labels={"l": "1"})
        expected = {"l": "1", OVERLAY_UPPERDIR: f"{root}/snapshots/1/fs"}
        info = engine.stat("a")
        assert info.labels == expected
        assert list(engine.walk()) == [info]
        assert list(engine.walk([f'labels."{OVERLAY_UPPERDIR}"'])) == []
        assert engine.update(info).labels == expected
    assert make().stat("a").labels == {"l": "1"}


def volatile_snapshot(engine: Engine) -> Mount:
    layers(engine, "base")
    (mount,) = engine.prepare("a", "base", labels={OVERLAY_VOLATILE: "true"})
    return mount


def mark(root: Path) -> Path:
    """Make what the kernel makes when it mounts an overlay with `volatile`."""
    path = root / "snapshots/2/work/work/incompat/volatile"
    path.mkdir(parents=True)
    return path


def test_volatile_is_last_and_only_for_what_is_written(make: Make) -> None:
    engine = make("index=off", boot="one")
    assert volatile_snapshot(engine).options[-2:] == ("index=off", "volatile")
    engine.commit("second", "a")
    (mount,) = engine.view("v", "second", labels={OVERLAY_VOLATILE: "true"})
    assert "volatile" not in mount.options
    (mount,) = engine.prepare("b", "base", labels={OVERLAY_VOLATILE: "false"})
    assert "volatile" not in mount.options


def test_volatile_can_be_mounted_again_in_the_same_boot(make: Make, root: Path) -> None:
    engine = make(boot="one")
    mounts = [volatile_snapshot(engine)]
    left = mark(root)
    assert engine.mounts("a") == mounts
    assert not left.exists()
    engine.commit("second", "a")


@pytest.mark.parametrize("left", ["mark and boot", "boot", "mark"])
def test_volatile_is_refused_after_a_reboot(make: Make, root: Path, left: str) -> None:
    with make(boot="one") as engine:
        volatile_snapshot(engine)
        mark(root)
        engine.sync()
        if left == "boot":
            engine.mounts("a")  # takes the mark away, maybe under a mount
    if left == "mark":
        (root / "snapshots/2/volatile-boot").unlink()
    engine = make(boot="two")
    with pytest.raises(DataLoss, match="restarted"):
        engine.mounts("a")
    with pytest.raises(DataLoss, match="restarted"):
        engine.commit("second", "a")
    assert engine.stat("a").name == "a"
    engine.remove("a")


def test_configured_index_is_not_overridden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameter = tmp_path / "index"
    monkeypatch.setattr(support, "INDEX_PARAMETER", parameter)
    assert support.overlay_options(tmp_path, ["metacopy=on"]) == ("metacopy=on",)
    parameter.touch()
    assert support.overlay_options(tmp_path, ["a"]) == ("a", "index=off")
    for own in ("index=on", "index"):
        assert support.overlay_options(tmp_path, [own]) == (own,)


def test_config_refuses_the_snapshotters_own_options() -> None:
    options = ("lowerdir=/x", "upperdir=/y", "workdir=/z", "lowerdir+=/x", "metacopy=on")
    assert len(OverlayConfig(mount_options=options).problems()) == 4
    assert OverlayConfig(mount_options=("metacopy=on", "userxattr")).problems() == []


def test_rebase_onto_what_is_not_committed_leaves_the_snapshot_active(make: Make) -> None:
    engine = make()
    for key in ("a", "b"):
        engine.prepare(key)
    with pytest.raises(FailedPrecondition):
        engine.commit("c", "a", parent="b")
    assert [info.name for info in engine.walk(["kind==active"])] == ["a", "b"]
    engine.update(Info("a", labels={"x": "y"}))
    engine.commit("c", "a")
