"""Images copied from each snapshotter to each other one, without the blobs of their layers."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lamina.config import load
from lamina.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from lamina.images.progress import Event, Stage
from lamina.mount import temp_mount, unmount_recursive
from lamina.store import Store
from tests.archives import gnu_tar
from tests.containerd.test_same_rootfs import CAPABILITY
from tests.fixtures_command import Command, workers
from tests.fixtures_containers import make_rootfs, wait_for
from tests.hard_image import (
    NAME,
    PROJECT_ID,
    allocated,
    chain,
    copied,
    drop_blobs,
    hard_image,
    load_image,
    names,
    tree,
)
from tests.images import OCI_LAYER, Layer, digest, image, index
from tests.isolation import mount_points
from tests.kernel.test_archive import layout, pack

DRIVERS = {
    "overlayfs": pytest.mark.overlay,
    "native": pytest.mark.root,
    "blockfile": pytest.mark.loop,
    "btrfs": pytest.mark.btrfs,
    "fuse-overlayfs": pytest.mark.fuse,
    "erofs": pytest.mark.erofs,
}
"""Each is copied to each other one; a driver joins with its name and the marker of its tests."""
PAIRS = [
    pytest.param(source, target, marks=[DRIVERS[source], DRIVERS[target]])
    for source, target in itertools.permutations(DRIVERS, 2)
]
CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.blockfile"]
scratch_size = "16MiB"
"""
NOBODY = 0xFFFFFFFF
ACL = ((1, 6, NOBODY), (2, 4, 1000), (4, 4, NOBODY), (0x10, 4, NOBODY), (0x20, 0, NOBODY))
"""Tag, permissions and id of each entry of an access control list (<linux/posix_acl_xattr.h>)."""
NATIVE = ("--snapshotter", "native")
NO_PARAMETERS = SimpleNamespace(params={})


@pytest.fixture
def open_store(
    request: pytest.FixtureRequest, root_dir: Path, tmp_path: Path
) -> Iterator[Callable[[], Store]]:
    opened: list[Store] = []
    if "btrfs" in getattr(request.node, "callspec", NO_PARAMETERS).params.values():
        root_dir = request.getfixturevalue("btrfs_dir") / "root"
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)

    def make() -> Store:
        opened.append(Store(root_dir, config=load(config)))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
    unmount_recursive(root_dir)


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_layer_is_the_same(store: Store, source: str, target: str) -> None:
    layers = hard_image()
    load_image(store, source, *layers)
    migrated = store.migrate(NAME, source, target)
    assert copied(migrated) == [True] * 4
    assert migrated.left == ()
    for chain_id in chain(store):
        assert tree(store, target, chain_id) == tree(store, source, chain_id)
        there, here = (store.snapshotter(name).stat(chain_id) for name in (source, target))
        assert (here.parent, here.labels) == (there.parent, there.labels)
    first, second, _, top = (tree(store, target, chain_id) for chain_id in chain(store))
    assert first["links/b"].same_file == first["links/c"].same_file == "links/a"
    assert second["links/b"].same_file == "links/b"
    assert second["links/same2"].same_file == "links/same1"
    assert top["etc"].mtime_ns == 1_400_000_000 * 10**9
    assert top["etc/foreign"].owner == (PROJECT_ID, PROJECT_ID + 1)
    assert top["ping"].xattrs == {"security.capability": CAPABILITY}
    assert "gone/a" not in top and "again/old" not in top and "opaque/old" not in top
    if "erofs" not in {source, target}:  # which does not tell where a file has holes
        assert allocated(store, target, chain(store)[3], "sparse") < 1 << 20
    assert names(store, source) == names(store, target) == set(chain(store))
    assert store.images.leases.all() == []
    assert store.fsck() == []


@pytest.mark.overlay
def test_a_layer_that_is_there_is_used(store: Store) -> None:
    layers = hard_image()
    load_image(store, "overlayfs", *layers, keep=True)
    load_image(store, "overlayfs", *layers[:2], Layer.of({"other": b"x"}), ref="two", keep=True)
    drop_blobs(store, *layers)
    assert copied(store.migrate(NAME, "overlayfs", "native")) == [True] * 4
    assert copied(store.migrate("two", "overlayfs", "native")) == [False, False, True]
    assert copied(store.migrate("two", "overlayfs", "native")) == [False] * 3
    # Of the chain a layer in the middle is missing, and one of the source below it.
    store.snapshotter("native").remove(chain(store)[3])
    assert copied(store.migrate(NAME, "overlayfs", "native")) == [False, False, False, True]
    assert tree(store, "native", chain(store)[3]) == tree(store, "overlayfs", chain(store)[3])


@pytest.mark.overlay
def test_source_keeps_what_others_need(store: Store) -> None:
    layers = hard_image()
    load_image(store, "overlayfs", *layers, keep=True)
    load_image(store, "overlayfs", layers[0], ref="base", keep=True)
    drop_blobs(store, *layers)
    ids = chain(store)
    store.snapshotter("overlayfs").prepare("container", ids[1])
    migrated = store.migrate(NAME, "overlayfs", "native", remove_source=True)
    assert list(migrated.left) == ids[:2]
    left = {info.name for info in store.snapshotter("overlayfs").walk()}
    assert left == {*ids[:2], "container"}
    store.snapshotter("overlayfs").remove("container")
    store.collect()
    assert names(store, "overlayfs") == set(ids[:1])
    assert store.migrate("base", "overlayfs", "native", remove_source=True).left == ()
    assert names(store, "overlayfs") == set()
    store.cleanup()
    assert names(store, "native") == set(ids)
    assert store.unpack(NAME, "native") == ids[3]
    for ref in (NAME, "base"):
        store.remove_image(ref)
    store.collect()
    assert names(store, "native") == set()


@pytest.mark.overlay
def test_a_changed_container_that_was_committed(store: Store) -> None:
    load_image(store, "overlayfs", *hard_image(), keep=True)
    with store.checkout(NAME, snapshotter="overlayfs") as checkout:
        root = checkout.path
        (root / "exact").write_text("to the nanosecond")
        os.utime(root / "exact", ns=(1, 1_700_000_000_123_456_789))
        os.setxattr(root / "home", "user.mark", b"\0\xff")
        acl = struct.pack("<I" + "HHI" * 5, 2, *itertools.chain.from_iterable(ACL))
        os.setxattr(root / "exact", "system.posix_acl_access", acl)
        root.chmod(0o711)
        os.utime(root, ns=(5, 123_456_789))
        os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
        checkout.commit("docker.io/library/changed:1")
    top = chain(store, "changed:1")[-1]
    store.migrate("changed:1", "overlayfs", "native")
    expected = tree(store, "overlayfs", top)
    assert expected.pop("socket").mode.startswith("s")  # no layer has ever brought one
    found = tree(store, "native", top)
    assert found == expected
    assert found["exact"].mtime_ns == 1_700_000_000_123_456_789
    assert found["."].mode == "drwx--x--x"
    assert set(found["exact"].xattrs) == {"system.posix_acl_access"}


@pytest.mark.overlay
@pytest.mark.parametrize(
    "target", ["native", pytest.param("blockfile", marks=pytest.mark.loop), "overlayfs"]
)
def test_attributes_that_a_layer_removes(store: Store, target: str) -> None:
    source = "native" if target == "overlayfs" else "overlayfs"
    load_image(store, source, *hard_image(), keep=True)
    acl = struct.pack("<I" + "HHI" * 5, 2, *itertools.chain.from_iterable(ACL))
    with store.checkout(NAME, snapshotter=source) as checkout:
        for path in (checkout.path, checkout.path / "etc"):
            os.setxattr(path, "user.going", b"1")
            os.setxattr(path, "user.staying", b"2")
            os.setxattr(path, "system.posix_acl_default", acl)
        (checkout.path / "etc/inherits").touch()
        checkout.commit("docker.io/library/with:1")
    with store.checkout("with:1", snapshotter=source) as checkout:
        os.removexattr(checkout.path / "etc", "user.going")
        if source == "native":  # the root of an overlay is new in each layer
            os.removexattr(checkout.path, "user.going")
        (checkout.path / "etc/plain").touch()
        (checkout.path / "etc/directory").mkdir()
        os.removexattr(checkout.path / "etc/plain", "system.posix_acl_access")
        os.removexattr(checkout.path / "etc/directory", "system.posix_acl_default")
        checkout.commit("docker.io/library/without:1")
    top = chain(store, "without:1")[-1]
    store.migrate("without:1", source, target)
    found = tree(store, target, top)
    assert found == tree(store, source, top)
    assert set(found["etc"].xattrs) == {"user.staying", "system.posix_acl_default"}
    assert "user.going" not in found["."].xattrs
    assert set(found["etc/inherits"].xattrs) == {"system.posix_acl_access"}
    assert set(found["etc/plain"].xattrs) == set()


@pytest.mark.overlay
def test_an_overlay_with_renamed_directories(store: Store) -> None:
    load_image(store, "overlayfs", *hard_image())
    engine, ids = store.snapshotter("overlayfs"), chain(store)
    labels = engine.stat(ids[3]).labels
    engine.remove(ids[3])
    [mount] = engine.prepare("renamed", ids[2])
    renaming = mount._replace(options=(*mount.options, "redirect_dir=on"))
    with temp_mount([renaming], dir=store.images.mounts) as root:
        (root / "links").rename(root / "moved")
    upper = next(o for o in mount.options if o.startswith("upperdir=")).removeprefix("upperdir=")
    assert "trusted.overlay.redirect" in os.listxattr(f"{upper}/moved")
    engine.commit(ids[3], "renamed", labels=labels)
    store.migrate(NAME, "overlayfs", "native")
    found = tree(store, "native", ids[3])
    assert found == tree(store, "overlayfs", ids[3])
    assert "moved/a" in found and "links" not in found


@pytest.mark.overlay
def test_platforms_that_are_unpacked(store: Store) -> None:
    from lamina.images.archive.importing import ImportOptions
    from lamina.images.operation import Options
    from lamina.images.platform import parse_platform

    ours = image(Layer.of({"a": b"ours"}))
    other, third = (
        image(Layer.of({"a": b}), architecture=a) for a, b in (("s390x", b"s"), ("mips64le", b"m"))
    )
    annotations = {"io.containerd.image.name": NAME}
    archive = pack(
        layout(ours, other, third, annotations=annotations, top=index(ours, other, third))
    )
    wanted = tuple(map(parse_platform, ("linux/s390x",)))
    options = ImportOptions(unpacking=Options(platforms=wanted))
    store.import_images(io.BytesIO(archive), snapshotter="overlayfs", options=options)
    migrated = store.migrate(NAME, "overlayfs", "native")
    assert [copy.manifest for copy in migrated.copies] == [other.digest]
    assert names(store, "native") == set(other.diff_ids)
    store.unpack(NAME, "overlayfs")
    assert copied(store.migrate(NAME, "overlayfs", "native")) == [True, False]


class Meddler:
    """Changes the target just before it is compared."""

    def __init__(self, snapshots: Path, change: Callable[[Path], object]) -> None:
        self._snapshots = snapshots
        self._change = change

    def update(self, event: Event) -> None:
        if event.stage is Stage.VERIFYING:
            newest = max(self._snapshots.iterdir(), key=lambda path: int(path.name))
            if (newest / "bin").exists():
                self._change(newest)


def flip(root: Path) -> None:
    """Change one byte, and leave the times."""
    path = root / "bin"
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"?")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_link(root: Path) -> None:
    times = (root / "links").stat()
    (root / "links/c").unlink()
    (root / "links/c").write_bytes(b"linked")
    os.utime(root / "links", ns=(times.st_atime_ns, times.st_mtime_ns))


def touch_all(root: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)


MEDDLING: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (flip, "bin: content is another, not the same"),
    "mode": (lambda root: (root / "bin").chmod(0o755), "bin: mode is 100755, not 104755"),
    "owner": (lambda root: os.chown(root / "bin", 1, 2), "bin: owner is 1:2, not 0:0"),
    "mtime": (lambda root: os.utime(root / "bin", (1, 1)), "bin: mtime is 1.0"),
    "attribute": (
        lambda root: os.removexattr(root / "ping", "security.capability"),
        "ping: attribute security.capability is None, not b",
    ),
    "missing": (lambda root: (root / "bin").unlink(), "bin: entry is missing, not a file"),
    "more": (lambda root: (root / "new").touch(), "new: entry is a file, not missing"),
    "link": (replace_link, "links/c: first name of the file is links/c, not links/a"),
    "all": (touch_all, r"mtime is 1\.0.*; and more"),
    "root": (lambda root: root.chmod(0o700), r"\.: mode is 40700, not 40755"),
}


@pytest.mark.overlay
@pytest.mark.parametrize("what", MEDDLING)
def test_a_copy_that_differs_is_not_kept(store: Store, what: str) -> None:
    change, told = MEDDLING[what]
    load_image(store, "overlayfs", *hard_image())
    snapshots = store.snapshotter("native").root / "snapshots"
    with pytest.raises(DataLoss, match=told) as caught:
        store.migrate(NAME, "overlayfs", "native", progress=Meddler(snapshots, change))
    assert chain(store)[0] in str(caught.value)
    assert names(store, "native") == set()
    assert names(store, "overlayfs") == set(chain(store))
    assert copied(store.migrate(NAME, "overlayfs", "native")) == [True] * 4


class Killer:
    """Kills the worker that applies what is being copied."""

    def update(self, event: Event) -> None:
        if event.stage is Stage.COPYING and event.offset:
            for pid in workers():
                os.kill(pid, signal.SIGKILL)


@pytest.mark.overlay
def test_a_worker_that_is_killed(store: Store) -> None:
    load_image(store, "overlayfs", *big_image())
    with pytest.raises(Aborted, match=r"copy layer.*was killed by signal 9"):
        store.migrate(NAME, "overlayfs", "native", progress=Killer())
    assert names(store, "native") == set()
    assert copied(store.migrate(NAME, "overlayfs", "native")) == [True] * 5


@pytest.mark.overlay
@pytest.mark.loop
def test_full_target(store: Store) -> None:
    noise = os.urandom(1 << 20)
    layers = (Layer.of({"small": b"x"}), Layer.of({f"big{i}": noise for i in range(20)}))
    load_image(store, "overlayfs", *layers)
    with pytest.raises(ResourceExhausted, match=r"copy layer.*to blockfile.*is full"):
        store.migrate(NAME, "overlayfs", "blockfile")
    assert names(store, "blockfile") == set(chain(store)[:1])
    assert names(store, "overlayfs") == set(chain(store))


@pytest.mark.overlay
def test_refusals(store: Store) -> None:
    with pytest.raises(NotFound, match="image"):
        store.migrate("none", "overlayfs", "native")
    load_image(store, "overlayfs", *hard_image())
    with pytest.raises(InvalidArgument, match="name another one with --snapshotter"):
        store.migrate(NAME, "native", "native")
    with pytest.raises(NotFound, match="nowhere"):
        store.migrate(NAME, "overlayfs", "nowhere")
    with pytest.raises(FailedPrecondition, match=r"not unpacked in native.*unpacked in: overlayfs"):
        store.migrate(NAME, "native", "overlayfs")


def big_image() -> tuple[Layer, ...]:
    noise = random.Random(5)
    return tuple(Layer.of({f"etc/{i}": noise.randbytes(3_000_000)}) for i in range(5))


def extractions(root: Path, name: str) -> int:
    """Return how many snapshots there are, of any kind."""
    return len(list((root / f"io.containerd.snapshotter.v1.{name}/snapshots").glob("[0-9]*")))


def kill_migration(command: Command, wanted: int) -> None:
    """Kill one when the target has so many snapshots, the one being made included."""
    process = command.start("images", "migrate", "--from", "overlayfs", *NATIVE, NAME)
    wait_for(lambda: extractions(command.root, "native") >= wanted, seconds=60)
    process.kill()
    process.communicate()
    # The command's worker ends by itself, when it sees that nobody is there.
    wait_for(lambda: workers() == [])


@pytest.mark.overlay
def test_killed_and_run_again(
    open_store: Callable[[], Store], root_dir: Path, command: Command
) -> None:
    store = open_store()
    load_image(store, "overlayfs", *big_image())
    ids = chain(store)
    store.close()
    began: set[int] = set()
    for wanted in (1, 2, 4):
        kill_migration(command, wanted)
        store = open_store()
        store.collect()
        left = names(store, "native")
        assert left == set(ids[: len(left)])
        began.add(len(left))
        assert names(store, "overlayfs") == set(ids)
        assert [point for point in mount_points() if point.startswith(str(root_dir))] == []
        store.close()
    assert began - {0, 5}, "no kill has hit between two layers"
    kill_migration(command, 5)
    command.run("images", "migrate", "--from", "overlayfs", *NATIVE, NAME)
    store = open_store()
    assert names(store, "native") == set(ids)
    assert tree(store, "native", ids[4]) == tree(store, "overlayfs", ids[4])


@pytest.mark.overlay
def test_two_at_once_copy_each_layer_once(
    open_store: Callable[[], Store], command: Command
) -> None:
    store = open_store()
    load_image(store, "overlayfs", *big_image())
    store.close()
    words = ("images", "migrate", "--from", "overlayfs", *NATIVE, "--json", NAME)
    processes = [command.start(*words) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    layers = [[layer["Copied"] for layer in each[0]["Images"][0]["Layers"]] for each in said]
    assert [sum(pair) for pair in zip(*layers, strict=True)] == [1] * 5
    assert len(names(open_store(), "native")) == 5


@pytest.mark.overlay
def test_command(open_store: Callable[[], Store], command: Command) -> None:
    store = open_store()
    load_image(store, "overlayfs", *hard_image())
    load_image(store, "overlayfs", Layer.of({"a": b"a"}), ref="docker.io/library/small:1")
    ids = chain(store)
    store.close()
    migrate = ("images", "migrate", "--from", "overlayfs")
    done = command.run(*migrate, *NATIVE, "hard:1", "small:1")
    lines = done.stdout.decode().splitlines()
    assert re.fullmatch(rf"{NAME}: 4 of 4 layers copied \([\d.]+ \wiB\) and verified", lines[0])
    assert len(lines) == 2
    steps = [line.split(": ", 1)[1] for line in done.stderr.decode().splitlines()]
    assert [step.split()[0] for step in steps] == ["done"] * 5
    plain = command.json(*migrate, *NATIVE, "--json", "--remove-source", "hard:1")
    [copy] = plain[0]["Images"]
    assert [layer["ChainID"] for layer in copy["Layers"]] == ids
    assert [layer["Copied"] for layer in copy["Layers"]] == [False] * 4
    assert plain[0]["Left"] == []
    checked = command.run("images", "check", *NATIVE, "name==" + NAME, "--json", code=7)
    assert json.loads(checked.stdout)[0]["Unpacked"] is True
    used = command.json("images", "usage", *NATIVE, "hard:1", "--json")
    assert [each["Key"] for each in used] == ids[::-1]

    error = command.error(*migrate, "hard:1", code=2)
    assert "name another one with --snapshotter" in error
    error = command.error(*migrate, "--snapshotter", "nowhere", "hard:1", code=3)
    assert "nowhere" in error
    error = command.error(*migrate, "--snapshotter", "blockfile", "hard:1", code=7)
    assert error.endswith("it is unpacked in: native")
    error = command.error(*migrate, *NATIVE, "absent", code=3)
    assert "lamina images ls" in error


@pytest.mark.overlay
@pytest.mark.loop
@pytest.mark.runtime
def test_containers_run_without_blobs(
    open_store: Callable[[], Store], command: Command, tmp_path: Path, container_id: str
) -> None:
    directory = tmp_path / "busybox"
    directory.mkdir()
    make_rootfs(directory)
    plain = gnu_tar(directory)
    above = Layer.of({"etc/.wh.passwd": b"", "etc/new": b"from the layer above\n"})
    store = open_store()
    load_image(store, "overlayfs", Layer(plain, digest(plain), OCI_LAYER), above)
    store.close()
    config = ("--config", tmp_path / "config.toml")
    migrate = ("images", "migrate", "--from", "overlayfs", "--snapshotter", "blockfile")
    command.run(*config, *migrate, "--remove-source", NAME)
    command.run(*config, "content", "prune", "references", code=None)
    words = ("cat", "/etc/new", "/etc/passwd")
    run = ("run", "--rm", "--snapshotter", "blockfile", NAME, container_id)
    done = command.run(*config, *run, *words, code=1)
    assert done.stdout == b"from the layer above\n"
    assert b"/etc/passwd" in done.stderr
