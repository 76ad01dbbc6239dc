"""Images optimised by running them: the command, the record, the blobs, and a lazy pull of them."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.core.digest import Digest
from lamina.core.labels import REMOTE
from lamina.formats.estargz.footer import find_toc
from lamina.formats.estargz.toc import read_toc
from lamina.images.manifest import OCI_MANIFEST, Descriptor, Manifest, parse_manifest
from lamina.images.overlaybd import is_acceleration
from lamina.images.recording import parse_record
from lamina.store import Store
from tests.archives import gnu_tar
from tests.erofs import Bytes
from tests.fixtures_command import Command
from tests.fixtures_containers import Machine, make_rootfs
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_stargz import end_lazy, write_config
from tests.images import OCI_INDEX, OCI_LAYER, Layer, digest, image, index

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay]

IMAGE = "docker.io/library/plain:1"
LAZY = "docker.io/library/lazy:1"
FAST = "docker.io/library/fast:1"
NOISE = random.Random(1).randbytes(200_000).hex().encode()
"""Data that does not vanish when compressed, and can be printed."""
A = NOISE[:100_000]
DATA = {
    "data/": None,
    "data/a": A,
    "data/b": NOISE[100_000:200_000],
    "data/unused": NOISE[200_000:],
}
TWICE = {"twice/one": b"1" * 5000, "twice/two": b"2" * 5000}
ABOVE = {"data/b": b"of the layer above\n", "data/other": NOISE[:50_000]}
PRINTED = (ABOVE["data/b"] + TWICE["twice/two"] + A).decode()
START = ["cat", "/data/b", "/twice/two", "/data/a"]
START_FILES = [
    (b"etc/passwd", 0),
    (b"etc/group", 0),
    (b"bin/busybox", 0),
    (b"data/b", 4),
    (b"twice/two", 3),
    (b"data/a", 2),
]
"""What the image's command reads, and in which layers that is."""
LANDMARK = ".prefetch.landmark"
NO_LANDMARK = ".no.prefetch.landmark"
CHUNKS = ("--chunk-size", "16KiB")


@pytest.fixture
def machine(root_dir: Path, tmp_path: Path, container_id: str) -> Iterator[Machine]:
    """A root with an image of busybox and data, one layer being there twice."""
    root_dir.mkdir(mode=0o711, parents=True)
    rootfs = tmp_path / "busybox"
    rootfs.mkdir()
    make_rootfs(rootfs)
    busybox = gnu_tar(rootfs)
    twice = Layer.of(TWICE)
    layers = [Layer(busybox, digest(busybox), OCI_LAYER), twice, Layer.of(DATA), twice]
    files = image(*layers, Layer.of(ABOVE), config={"Env": ["PATH=/bin"], "Cmd": START})
    with Store(root_dir) as store:
        for blob in (*files.blobs, files.manifest):
            found = Descriptor(OCI_MANIFEST, Digest(digest(blob)), len(blob))
            store.images.content.put(blob, found)
        store.images.catalogue.put(IMAGE, found)
    machine = Machine(root_dir, container_id, Command(root_dir))
    yield machine
    machine.close()


def manifest_of(store: Store, name: str) -> Manifest:
    target = store.image(name).target
    found = parse_manifest(store.images.content.read(target.digest), target.media_type)
    assert isinstance(found, Manifest)
    return found


def names(machine: Machine, name: str) -> list[list[str]]:
    """Return the names in the table of contents of each layer, in order."""
    with Store(machine.root) as store:
        found = []
        for layer in manifest_of(store, name).layers:
            blob = Bytes(store.images.content.path(layer.digest).read_bytes())
            entries = read_toc(blob, find_toc(blob)).entries
            found.append([entry.name.rstrip("/") for entry in entries if entry.type != "chunk"])
    return found


def images(machine: Machine) -> list[str]:
    return machine.lamina("images", "ls", "-q").stdout.split()


@pytest.mark.erofs
@pytest.mark.fuse
@pytest.mark.registry
def test_what_a_run_reads_comes_first(
    machine: Machine, registry: LocalRegistry, tmp_path: Path
) -> None:
    machine.lamina("images", "convert", *CHUNKS, IMAGE, LAZY)
    record = tmp_path / "record"
    options = (*CHUNKS, "--record-out", str(record), "--json")
    done = machine.lamina("images", "optimize", LAZY, FAST, *options)
    assert PRINTED in done.stderr
    assert [(f.path, f.layer) for f in parse_record(record.read_bytes())] == START_FILES

    base, twice, data, again, above = names(machine, FAST)
    first = [".", "./etc", "./etc/passwd", "./etc/group", "./bin", "./bin/busybox", LANDMARK]
    assert base[: len(first)] == first
    # The layer that is there twice is one blob, and has what is wanted of either.
    assert twice == again == ["twice/two", LANDMARK, "twice/one"]
    assert data == ["data", "data/a", LANDMARK, "data/b", "data/unused"]
    assert above == ["data/b", LANDMARK, "data/other"]

    said = json.loads(done.stdout)
    assert said["Recorded"]["Files"] == len(START_FILES)
    assert (said["Recorded"]["Ended"], said["Recorded"]["ExitCode"]) == ("exit", 0)
    check_costs(said["Start"], before_is_lazy=True)
    before, after = said["Start"]["Before"], said["Start"]["After"]
    # One after the other each file is asked for; prefetched, one stretch of each layer.
    assert before["Requests"] == after["RequestsUnprefetched"] == len(START_FILES)
    assert after["Requests"] == len(said["Start"]["Layers"])
    assert machine.leftovers() == []
    assert_lazy(machine, registry, FAST, tmp_path)


@pytest.mark.loop
@pytest.mark.fuse
@pytest.mark.registry
def test_an_overlaybd_image_lists_what_a_run_reads(
    machine: Machine, registry: LocalRegistry, tmp_path: Path
) -> None:
    options = ("--overlaybd", "--vsize", "1", "--json")
    done = machine.lamina("images", "optimize", IMAGE, FAST, *options)
    said = json.loads(done.stdout)
    assert said["Recorded"]["Files"] == len(START_FILES)
    assert "Start" not in said
    with Store(machine.root) as store:
        *layers, trace = manifest_of(store, FAST).layers
        assert [is_acceleration(layer) for layer in (*layers, trace)] == [False] * 5 + [True]
        with tarfile.open(store.images.content.path(trace.digest)) as archive:
            file = archive.extractfile("trace")
            assert file is not None
            listed = file.read()
    # Layer by layer; the one that is there twice has what is wanted of either.
    wanted = ["etc/passwd", "etc/group", "bin/busybox", "twice/two", "data/a", "data/b"]
    assert listed.decode() == "".join(f"/{path}\n" for path in wanted)
    assert_lazy(machine, registry, FAST, tmp_path, snapshotter="overlaybd", others=1)


def test_a_plain_image_by_both_verbs(machine: Machine) -> None:
    done = machine.lamina("images", "optimize", IMAGE, FAST, "-q", "--", "cat", "/data/other")
    assert done.stdout.encode() == ABOVE["data/other"]
    machine.lamina("images", "convert", "--optimize", "cat '/data/other'", IMAGE, LAZY)
    assert names(machine, FAST) == names(machine, LAZY)
    base, twice, data, again, above = names(machine, FAST)
    assert LANDMARK in base
    assert twice == again == [NO_LANDMARK, *TWICE]
    assert NO_LANDMARK in data
    assert above == ["data/other", LANDMARK, "data/b"]

    # The numbers, as a table that the output of the command comes before.
    done = machine.lamina("images", "optimize", IMAGE, FAST, "--", "echo", "started")
    lines = done.stdout.splitlines()
    assert lines[0] == "started"
    assert lines[1].split()[:2] == ["LAYER", "FILES"]
    assert [line.split()[1] for line in lines[2:7]] == ["3", "0", "0", "0", "3"]
    done = machine.lamina("images", "optimize", IMAGE, FAST, "--json", "--", "true")
    check_costs(json.loads(done.stdout)["Start"], before_is_lazy=False)
    machine.command.assert_sound(5)


def check_costs(start: dict[str, Any], *, before_is_lazy: bool) -> None:
    assert start["After"]["Bytes"] < start["Before"]["Bytes"] or before_is_lazy
    for when in ("Before", "After"):
        layers = [layer[when] for layer in start["Layers"]]
        for name in ("Bytes", "Requests"):
            assert start[when][name] == sum(layer[name] for layer in layers)
        for layer in layers:
            assert layer["IsLazy"] == (before_is_lazy or when == "After")
            assert layer["Bytes"] <= layer["Size"]
    for layer in start["Layers"]:
        after = layer["After"]
        assert layer["Before"]["Files"] == after["Files"]
        assert bool(after["Files"]) == bool(after["Prefetch"])
        assert (after["RequestsLeft"], after["BytesLeft"]) == (0, 0)
        assert after["Needed"] <= (after["Prefetch"] or 0)


def assert_lazy(
    machine: Machine,
    registry: LocalRegistry,
    name: str,
    directory: Path,
    *,
    snapshotter: str = "stargz",
    others: int = 0,
) -> None:
    """Push the image, forget it, and run it from where it was pulled lazily.

    `others` are layers that are not lazy.
    """
    ref = f"{registry.host}/fast:1"
    config = write_config(directory, "fuse", snapshotter=snapshotter)
    with Store(machine.root) as store:
        manifest = manifest_of(store, name)
        content = store.images.content
        blobs = [content.path(d.digest).read_bytes() for d in (manifest.config, *manifest.layers)]
        registry.push(content.read(store.image(name).target.digest), blobs, "fast", "1")
    machine.lamina("images", "rm", *images(machine))
    options = ("--config", str(config), "--snapshotter", snapshotter)
    try:
        machine.lamina("images", "pull", *options, "--plain-http", ref)
        infos = machine.command.json("snapshots", *options, "ls", "--json")
        assert sorted(REMOTE in info["Labels"] for info in infos) == [False] * others + [True] * 5
        done = machine.lamina("run", "--rm", *options, ref, machine.id, *START)
        assert done.stdout == PRINTED
    finally:
        end_lazy(machine.root)


def test_a_record_of_others(machine: Machine, tmp_path: Path) -> None:
    record = tmp_path / "record"
    # As ctr-remote writes it of another build: its layers and files do not count.
    lines = [
        {"path": path, "manifestDigest": "sha256:" + "0" * 64, "layerIndex": 9}
        for path in ("data/unused", "gone", "/data/b")
    ]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    done = machine.lamina(
        *("images", "convert", "--zstdchunked", "--prioritized-chunk-size", "4KiB"),
        *("--record-in", str(record), "--record-out", str(out), "--json", IMAGE, FAST),
    )
    assert "1 of the recorded paths are no files" in done.stderr
    files = [(f.path, f.layer) for f in parse_record(out.read_bytes())]
    assert files == [(b"data/unused", 2), (b"data/b", 4)]
    start = json.loads(done.stdout)["Start"]
    check_costs(start, before_is_lazy=False)
    assert [bool(layer["After"]["Files"]) for layer in start["Layers"]] == [
        *(False, False, True, True)
    ]
    machine.lamina("images", "optimize", "--zstdchunked", "--record-in", str(record), IMAGE, LAZY)
    assert names(machine, LAZY) == names(machine, FAST)
    assert names(machine, LAZY)[2][:3] == ["data", "data/unused", LANDMARK]
    assert machine.leftovers() == []


def test_images_for_other_platforms_have_nothing_to_prefetch(
    machine: Machine, tmp_path: Path
) -> None:
    own, other = image(Layer.of(DATA)), image(Layer.of(ABOVE), architecture="riscv64")
    listed = index(own, other)
    with Store(machine.root) as store:
        for blob in (*own.blobs, own.manifest, *other.blobs, other.manifest, listed):
            found = Descriptor(OCI_INDEX, Digest(digest(blob)), len(blob))
            store.images.content.put(blob, found)
        store.images.catalogue.put(IMAGE, found)
    (tmp_path / "record").write_text('{"path": "data/b"}\n')
    options = ("--record-in", str(tmp_path / "record"), IMAGE, FAST)
    error = machine.command.error(
        "images", "optimize", "--platform", "linux/riscv64", *options, code=2
    )
    assert "choose it too" in error
    machine.lamina("images", "optimize", "--all-platforms", *options)
    with Store(machine.root) as store:
        read = store.images.content.read
        entries = json.loads(read(store.image(FAST).target.digest))["manifests"]
        tops = [json.loads(read(entry["digest"]))["layers"][-1]["digest"] for entry in entries]
        blobs = [Bytes(store.images.content.path(digest).read_bytes()) for digest in tops]
    tables = [[entry.name for entry in read_toc(blob, find_toc(blob)).entries] for blob in blobs]
    assert [name for table in tables for name in table if name in {LANDMARK, NO_LANDMARK}] == [
        *(LANDMARK, NO_LANDMARK)
    ]


WRONG = [
    ("convert", ("--optimize", "true", "--record-in", "FILE"), "cannot be used together"),
    ("convert", ("--optimize", "'"), "No closing quotation"),
    ("convert", ("--optimize", ""), "is empty"),
    ("convert", ("--chunk-size", "0"), "use chunk size.*give a multiple of 4096"),
    ("convert", ("--record-out", "FILE"), "--record-out needs --optimize or --record-in"),
    ("convert", ("--record-in", "FILE"), "no such file|not found"),
    ("optimize", ("--record-in", "FILE", "--env", "A=b"), "leave out --env"),
    ("optimize", ("--record-in", "FILE", "--", "true"), "leave out the command"),
    ("optimize", ("--period", "nan"), "it is no number"),
    ("optimize", ("--chunk-size", "100"), 'use chunk size "100"'),
    ("optimize", ("--record-out", "/no/such/directory/x"), "no such directory"),
    ("optimize", ("--", "/no/such/program"), "no such file"),
]


def test_wrong_options_run_nothing(machine: Machine, tmp_path: Path) -> None:
    for verb, options, expected in WRONG:
        given = [str(tmp_path / "none") if word == "FILE" else word for word in options]
        done = machine.lamina("images", verb, IMAGE, FAST, *given, code=None)
        assert done.returncode not in {0, 13}, given
        assert re.search(expected, done.stderr), f"{given}: {done.stderr}"
        assert done.stdout == ""
    (tmp_path / "none").write_text('{"path": "none/of/it"}\n')
    argv = ("images", "convert", "--record-in", str(tmp_path / "none"), IMAGE, FAST)
    assert "is it of another image?" in machine.command.error(*argv, code=3)
    assert images(machine) == [IMAGE]
    assert machine.leftovers() == []


def test_a_signal_ends_all_or_only_the_recording(machine: Machine) -> None:
    script = ("--", "sh", "-c", "cat /data/a >/dev/null; echo ready; exec sleep 100")

    def started(*options: str) -> subprocess.Popen[bytes]:
        process = machine.start("images", "optimize", *CHUNKS, *options, IMAGE, FAST, *script)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    process = started("--period", "100")
    said, seconds = machine.command.stop(process, signal.SIGINT)
    assert (process.returncode, said) == (128 + signal.SIGINT, b"")
    assert seconds < 30
    assert images(machine) == [IMAGE]
    assert machine.leftovers() == []
    machine.command.assert_sound(5)

    process = started("--wait-on-signal")
    machine.command.stop(process, signal.SIGTERM)
    assert process.returncode == 0
    assert names(machine, FAST)[2][:3] == ["data", "data/a", LANDMARK]
    assert machine.leftovers() == []


def test_a_line_or_a_period_ends_it_and_what_it_ended_with_is_told(machine: Machine) -> None:
    script = "cat /data/a >/dev/null; echo it is ready; sleep 100; cat /data/unused"
    argv = ("images", "optimize", "--json", IMAGE, FAST)
    for options in (("--wait-on-line", "is ready"), ("--period", "1.5")):
        done = machine.lamina(*argv, *options, "--", "sh", "-c", script)
        said = json.loads(done.stdout)["Recorded"]
        assert said["Ended"] == ("line" if "--wait-on-line" in options else "period")
        assert "it is ready\n" in done.stderr
        assert names(machine, FAST)[2][:3] == ["data", "data/a", LANDMARK]
    done = machine.lamina(*argv, "--env", "CODE=3", "--", "sh", "-c", "echo $CODE >/x; exit $CODE")
    assert "the container ended with exit code 3" in done.stderr
    assert json.loads(done.stdout)["Recorded"]["Others"] == ["x"]
