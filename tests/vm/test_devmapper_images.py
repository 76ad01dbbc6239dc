"""Images and containers on devmapper: on pools that `setup` has made, and behind a containerd."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.config import load
from lamina.core.mount import Mount
from lamina.formats.lsmt.reader import open_layer
from lamina.formats.lsmt.stack import Stack, export_image
from lamina.images.blob_source import FileSource
from lamina.images.snapshot_blocks import export_blocks
from lamina.linux.dm import node
from lamina.mount import temp_mount
from lamina.snapshotters.devmapper.plugin import PLUGIN
from lamina.snapshotters.wakeup import janitor_runs
from lamina.store import Store
from tests.archives import gnu_tar
from tests.containerd.test_proxy import COUNT, GC_SECONDS, Client, push
from tests.fixtures_command import Command
from tests.fixtures_containerd import Containerd, started
from tests.fixtures_containers import make_rootfs, wait_for
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_serve import Serve, proxied_containerd, serving
from tests.fixtures_thin_pool import ThinPool, device_name, loop_device
from tests.hard_image import NAME, chain, copied, hard_image, load_image, names, tree
from tests.images import OCI_LAYER, Layer, digest
from tests.isolation import device_names, unmount
from tests.trees import describe
from tests.vm.devmapper import SIZE, active_devices, thin_ids

pytestmark = [
    pytest.mark.dm(boot="images"),
    pytest.mark.root,
    pytest.mark.registry,
    pytest.mark.runtime,
]

DISK_BYTES = 256 << 20
SNAPSHOTTER = ("--snapshotter", "devmapper")
LOOK = "cat /etc/changed; ls /etc; mount | grep ' / '; echo changed > /etc/passwd"


@pytest.fixture
def reference(registry: LocalRegistry, tmp_path: Path) -> str:
    """An image of which the upper layer deletes and replaces files of the lower one."""
    directory = tmp_path / "busybox"
    directory.mkdir()
    make_rootfs(directory)
    (directory / "etc/deleted").write_text("by the layer above")
    (directory / "etc/changed").write_text("below")
    plain = gnu_tar(directory)
    above = Layer.of({"etc/.wh.deleted": b"", "etc/changed": b"above\n"})
    return push(registry, Layer(plain, digest(plain), OCI_LAYER), above)


@pytest.fixture(params=["loop", "lvm"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[object, ...]]:
    """What `setup` is given for a pool."""
    if request.param == "loop":
        yield ("--loop", "--data-size", str(DISK_BYTES), "--meta-size", "4M")
        return
    with loop_device(tmp_path / "disk", DISK_BYTES) as disk:
        yield ("--device", disk, "--vg", device_name("vg"))


@pytest.fixture
def no_dmsetup() -> Iterator[None]:
    """A machine where dmsetup does nothing but fail: the kernel is asked directly."""
    program = shutil.which("dmsetup")
    assert program is not None
    subprocess.run(("mount", "--bind", "/bin/false", program), check=True)
    yield
    unmount(program)


def assert_seen(said: str, pool: str) -> None:
    """See whether a container has printed what `LOOK` prints on this pool."""
    lines = said.splitlines()
    assert lines[0] == "above"
    assert "deleted" not in lines
    device, _on, root, _type, filesystem = lines[-1].split()[:5]
    assert device.startswith(f"{node(pool)}-snap-")
    assert (root, filesystem) == ("/", "ext4")


@pytest.mark.usefixtures("no_dmsetup")
def test_pool_that_was_set_up_has_images_and_containers(
    command: Command, recipe: tuple[object, ...], reference: str, container_id: str, tmp_path: Path
) -> None:
    section = command.out("devmapper", "setup", *recipe, "--image-size", SIZE)
    pool = tomllib.loads(section)["plugins"][PLUGIN.uri]["pool_name"]
    config = tmp_path / "config.toml"
    config.write_text(f"version = 3\n{section}")
    before = device_names()

    def lamina(*words: object) -> str:
        return command.out("--config", config, *words)

    def kinds() -> list[str]:
        listed = command.json("--config", config, "snapshots", *SNAPSHOTTER, "ls", "--json")
        return [each["Kind"] for each in listed]

    def run(*words: str) -> str:
        return lamina("run", "--rm", *SNAPSHOTTER, reference, container_id, *words)

    lamina("images", "pull", "--plain-http", *SNAPSHOTTER, reference)
    assert_seen(run("sh", "-c", LOOK), pool)
    assert kinds() == ["Committed", "Committed"]
    wait_for(lambda: not janitor_runs(command.root))
    lamina("devmapper", "deactivate")
    assert device_names() == []
    lamina("devmapper", "activate")
    assert run("cat", "/etc/passwd").startswith("root:x:0:0")
    assert lamina("fsck") == ""

    lamina("images", "rm", "--sync", reference)
    assert kinds() == []
    assert sorted(device_names()) == sorted(before)
    assert lamina("fsck") == ""
    wait_for(lambda: not janitor_runs(command.root))
    lamina("devmapper", "teardown")
    assert device_names() == []


def test_images_migrate_to_devmapper_and_back(tmp_path: Path, thin_pool: ThinPool) -> None:
    config = tmp_path / "config.toml"
    section = f'[plugins."{PLUGIN.uri}"]\npool_name = "{thin_pool.name}"\n'
    config.write_text(f'version = 3\n{section}base_image_size = "{SIZE}"\n')
    layers = hard_image()
    with Store(tmp_path / "root", config=load(config)) as store:
        load_image(store, "native", *layers)
        assert copied(store.migrate(NAME, "native", "devmapper")) == [True] * 4
        ids = chain(store)
        trees = [tree(store, "native", chain_id) for chain_id in ids]
        assert [tree(store, "devmapper", chain_id) for chain_id in ids] == trees
        store.snapshotter("native").remove(ids[3])
        back = store.migrate(NAME, "devmapper", "native", remove_source=True)
        assert copied(back) == [False, False, False, True]
        assert back.left == ()
        assert tree(store, "native", ids[3]) == trees[3]
        assert names(store, "devmapper") == set()
        store.cleanup()
    assert len(thin_ids(thin_pool)) == 1  # the empty filesystem


def test_the_filesystem_of_a_snapshot_is_exported_as_it_is(
    tmp_path: Path, thin_pool: ThinPool
) -> None:
    config = tmp_path / "config.toml"
    section = f'[plugins."{PLUGIN.uri}"]\npool_name = "{thin_pool.name}"\n'
    config.write_text(f'version = 3\n{section}base_image_size = "{SIZE}"\n')
    with Store(tmp_path / "root", config=load(config)) as store:
        load_image(store, "devmapper", *hard_image())
        top = chain(store)[-1]
        expected = tree(store, "devmapper", top)
        with (tmp_path / "layer").open("w+b") as out, (tmp_path / "device").open("wb") as device:
            export_blocks(store.snapshotter("devmapper"), top, out)
            out.flush()
            export_image(Stack([open_layer(FileSource(out))]), device)
        assert names(store, "devmapper") == set(chain(store))
    assert (tmp_path / "device").stat().st_size == 64 << 20
    look = [Mount("ext4", str(tmp_path / "device"), options=("ro", "loop"))]
    with temp_mount(look, dir=tmp_path, read_only=True) as place:
        assert describe(place) == expected


@pytest.fixture
def served(tmp_path: Path, thin_pool: ThinPool) -> Iterator[Serve]:
    """A `lamina serve` with devmapper."""
    section = f'[plugins."{PLUGIN.uri}"]\npool_name = "{thin_pool.name}"\n'
    config = f'version = 3\n{section}base_image_size = "{SIZE}"\n'
    with serving(Serve(tmp_path / "s", config)) as daemon:
        yield daemon


@pytest.fixture
def behind(tmp_path: Path, served: Serve) -> Iterator[Containerd]:
    """A containerd that asks it."""
    configured = proxied_containerd(tmp_path / "c", served, sections=("devmapper",))
    with started(configured) as daemon:
        yield daemon


@pytest.fixture
def client(behind: Containerd, container_id: str) -> Iterator[Client]:
    running = Client(behind, "devmapper", container_id)
    yield running
    running.close()


@pytest.mark.containerd
def test_behind_containerd(
    client: Client, served: Serve, thin_pool: ThinPool, reference: str
) -> None:
    def lamina(*words: str) -> str:
        return served.command.out(*served.options, *words)

    def kinds() -> list[str]:
        listed = served.command.json(*served.options, "snapshots", *SNAPSHOTTER, "ls", "--json")
        return sorted(each["Kind"] for each in listed)

    client.pull(reference)
    assert kinds() == ["Committed", "Committed"]
    assert_seen(client.run(reference, "sh", "-c", LOOK), thin_pool.name)
    assert client.run(reference, "cat", "/etc/passwd").startswith("root:x:0:0")
    id = client.start(reference, "sh", "-c", COUNT)
    served.kill()
    client.assert_counts(id)
    served.start()
    client.reconnect()
    client.daemon.ctr("content", "prune", "references")  # collects garbage
    assert kinds() == ["Active", "Committed", "Committed"]
    client.assert_counts(id)
    assert lamina("fsck") == ""
    client.remove(id)

    client.daemon.ctr("images", "rm", "--sync", reference)
    wait_for(lambda: kinds() == [], seconds=GC_SECONDS)
    assert active_devices(thin_pool) == set()
    assert len(thin_ids(thin_pool)) == 1  # the empty filesystem
    assert client.snapshots("ls").splitlines()[1:] == []
    assert lamina("fsck") == ""
