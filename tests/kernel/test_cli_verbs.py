"""`lamina images`, `content` and `leases`: the verbs on what is here already, as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.digest import parse_digest
from lamina.meta.containers import Container
from lamina.meta.leases import Resource
from tests.faulty_registry import FaultyRegistry, faulty_registry
from tests.fixtures_command import Command
from tests.images import ARCHITECTURE, OCI_INDEX, ImageFiles, Layer, digest, image, index
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay]


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


def serve(faulty: FaultyRegistry, files: ImageFiles, tag: str = "1") -> str:
    for blob in files.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest(tag, files.manifest)
    return f"{faulty.host}/team/app:{tag}"


def pulled(command: Command, faulty: FaultyRegistry, *options: str) -> tuple[str, ImageFiles]:
    files = three_layers()
    ref = serve(faulty, files)
    command.run("images", "pull", "-q", "--plain-http", *options, ref)
    return ref, files


def columns(table: str) -> list[list[str]]:
    """Split a table whose cells are two or more blanks, or the width of a column, apart."""
    return [line.split() for line in table.splitlines()]


def test_check(command: Command, faulty: FaultyRegistry) -> None:
    ref, files = pulled(command, faulty)
    heading, row = columns(command.out("images", "check"))
    assert heading == ["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"]
    size = f"{sum(map(len, files.blobs)) / 1024:.1f}"
    assert row[2:] == [
        files.digest, "complete", "(4/4)", size, f"KiB/{size}", "KiB", "true",
    ]  # fmt: skip
    assert command.out("images", "check", "-q") == f"{ref}\n"
    assert command.out("images", "check", "name==other").count("\n") == 1

    done = command.run("i", "check", "--snapshotter", "native", code=7)
    assert done.stdout.decode().split()[-1] == "false"
    assert done.stderr.decode().startswith("lamina: check: 1 of 1 images are not ready in")
    assert "nothing of them is missing" in done.stderr.decode()
    layer = files.layers[1].digest
    command.run("content", "rm", layer)
    done = command.run("images", "check", code=7)
    assert b"incomplete (3/4)" in done.stdout
    assert b"--no-unpack gets what is missing" in done.stderr
    done = command.run("images", "check", "-q", code=7)
    assert done.stdout == b""
    command.run("content", "rm", digest(files.config))
    assert b"incomplete (2/4)" in command.run("images", "check", code=7).stdout
    command.run("content", "rm", files.digest)
    assert b"unavailable (0/?) 0.0 B/? false" in command.run("images", "check", code=7).stdout


def test_check_as_json(command: Command, faulty: FaultyRegistry) -> None:
    ref, files = pulled(command, faulty)
    command.run("content", "rm", files.layers[0].digest)
    [plain] = json.loads(command.run("images", "check", "--json", code=7).stdout)
    assert plain["Missing"] == [files.layers[0].digest]
    assert (plain["Name"], plain["Complete"], plain["Unpacked"]) == (ref, False, True)
    assert plain["Snapshotter"] == "overlayfs"


def test_check_of_an_image_for_another_platform(command: Command, faulty: FaultyRegistry) -> None:
    other = image(
        Layer.of({"a": b"x"}), architecture="arm64" if ARCHITECTURE == "amd64" else "amd64"
    )
    for blob in other.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest(other.digest, other.manifest)
    faulty.add_manifest("1", index(other), OCI_INDEX)
    ref = f"{faulty.host}/team/app:1"
    platform = "linux/arm64" if ARCHITECTURE == "amd64" else "linux/amd64"
    command.run("images", "pull", "-q", "--plain-http", "--platform", platform, ref)
    assert command.out("images", "check", "-q") == f"{ref}\n"


def test_usage(command: Command, faulty: FaultyRegistry) -> None:
    ref, _ = pulled(command, faulty)
    heading, *rows = columns(command.out("images", "usage", ref))
    assert heading == ["KEY", "SIZE", "INODES"]
    parents = {s["Name"]: s.get("Parent") for s in command.json("snapshots", "ls", "--json")}
    assert [row[0] for row in rows[1:]] == [parents[row[0]] for row in rows[:-1]]
    plain = command.json("images", "usage", "--json", ref)
    assert [layer["Key"] for layer in plain] == [row[0] for row in rows]
    assert all(layer["Size"] > 200_000 for layer in plain)
    command.error("images", "usage", "nothing", code=3)
    command.error("images", "usage", "--snapshotter", "native", ref, code=3)


def test_tag(command: Command, faulty: FaultyRegistry) -> None:
    ref, files = pulled(command, faulty)
    said = command.out("images", "tag", ref, "app", "debian:mine", "example.com/b:3")
    names = ["docker.io/library/app:latest", "docker.io/library/debian:mine", "example.com/b:3"]
    assert said.splitlines() == names
    assert (
        command.out("images", "tag", "--local", "--skip-reference-check", "app", "odd") == "odd\n"
    )
    listed = command.json("images", "ls", "--json")
    assert {entry["Target"]["Digest"] for entry in listed} == {files.digest}
    assert sorted(entry["Name"] for entry in listed) == sorted([ref, "odd", *names])
    other = image(Layer.of({"other": b"x"}))
    second = serve(faulty, other, "2")
    command.run("images", "pull", "-q", "--plain-http", second)
    assert "--force" in command.error("images", "tag", second, "app", code=4)
    command.run("images", "tag", "--force", second, "app")
    [moved] = command.json("images", "ls", "--json", "name==docker.io/library/app:latest")
    assert moved["Target"]["Digest"] == other.digest
    command.error("images", "tag", "nothing", "new", code=3)
    command.error("images", "tag", ref, "UPPER/case:", code=2)
    for name in (ref, second, "odd", *names):
        command.run("images", "rm", name)
    command.assert_sound()


def test_labels(command: Command, faulty: FaultyRegistry) -> None:
    ref, files = pulled(command, faulty)
    assert command.out("images", "label", ref, "a=b", "c") == "a=b,c=true\n"
    assert command.out("images", "label", ref, "c=") == "a=b\n"
    assert command.json("images", "label", "--json", ref) == {"a": "b"}
    assert command.out("images", "label", "-r", ref, "z=1") == "z=1\n"
    command.error("images", "label", "nothing", "a=b", code=3)
    said = command.out("content", "label", files.layers[0].digest, "mine=1")
    assert said.endswith(",mine=1\n")
    shown = command.json("content", "label", "--json", files.layers[0].digest)
    assert shown["mine"] == "1"
    command.error("content", "label", digest(b"nothing"), "a=b", code=3)


def test_prune_images(
    command: Command, faulty: FaultyRegistry, tmp_path: Path, container_id: str
) -> None:
    ref, _ = pulled(command, faulty)
    command.run("images", "tag", ref, "app:old", "app:new")
    done = command.run("images", "prune")
    assert done.stdout == b""
    assert b"warning: nothing removed: --all removes 3 images" in done.stderr
    with command.open() as store:
        store.containers.create(Container(id=container_id, image="app:old"))
    said = command.out("images", "prune", "--all")
    assert said.splitlines() == [ref, "docker.io/library/app:new"]
    assert command.out("images", "ls", "-q") == "docker.io/library/app:old\n"
    assert len(command.json("snapshots", "ls", "--json")) == 3


def test_prune_references(command: Command, faulty: FaultyRegistry) -> None:
    ref, files = pulled(command, faulty)
    layers = sorted(layer.digest for layer in files.layers)
    assert command.out("content", "prune", "references", "--dry").splitlines() == layers
    assert command.json("content", "prune", "references", "--async", "--json") == layers
    assert len(command.json("content", "ls", "--json")) == 5
    command.out("content", "prune", "references")
    left = {entry["Digest"] for entry in command.json("content", "ls", "--json")}
    assert left == {files.digest, digest(files.config)}
    command.assert_sound(3)
    assert b"incomplete (1/4)" in command.run("images", "check", code=7).stdout
    command.run("images", "pull", "-q", "--plain-http", ref)
    command.assert_sound(3)


def test_ingest(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    expected = digest(b"content")
    with file.open("rb") as stream:
        done = command.run("content", "ingest", "--expected-size", 7, "key", stdin=stream)
    assert done.stdout.decode() == f"{expected}\n"
    for options in (["--expected-size", 8], ["--expected-digest", digest(b"other")]):
        with file.open("rb") as stream:
            done = command.run("content", "ingest", *options, "key2", stdin=stream, code=7)
        assert b"expected" in done.stderr
    assert command.json("content", "active", "--json") == []
    assert command.run("content", "get", expected).stdout == b"content"
    command.run("content", "label", expected, "containerd.io/gc.root=now")
    command.run("snapshots", "cleanup")
    described = command.json("content", "info", expected)
    assert (described["Digest"], described["Size"]) == (expected, 7)
    assert described["Labels"] == {"containerd.io/gc.root": "now"}
    assert command.json("content", "info", "--json", expected) == described
    command.run("content", "label", expected, "containerd.io/gc.root=")
    command.run("snapshots", "cleanup")
    command.error("content", "info", expected, code=3)


def test_active(command: Command) -> None:
    with command.open() as store:
        writer = store.images.content.open_writer("some-key")
        writer.write(b"12345")
        heading, row = columns(command.out("content", "active"))
        assert (heading, row[:3]) == (["REF", "SIZE", "AGE"], ["some-key", "5.0", "B"])
        [plain] = command.json("content", "active", "--json", "^some")
        assert plain == {"Ref": "some-key", "Offset": 5, "Total": 0}
        assert command.json("content", "active", "--json", "other") == []
        command.run("content", "active", "(", code=2)
        writer.abort()


def test_leases(command: Command, tmp_path: Path) -> None:
    first = command.out("leases", "create", "a=b", "c").strip()
    assert command.out("leases", "create", "--id", "mine", "--expires", "0") == "mine\n"
    assert command.out("leases", "create", "--id", "short", "-x", "1h30m") == "short\n"
    command.error("leases", "create", "--id", "mine", code=4)
    command.run("leases", "create", "-x", "tomorrow", code=2)
    command.error("leases", "create", "containerd.io/gc.expire=x", code=2)
    heading, *rows = command.out("leases", "ls").splitlines()
    assert heading.split() == ["ID", "CREATED", "AT", "LABELS"]
    labels = {row.split()[0]: row.split()[2] for row in rows}
    assert labels["mine"] == "-"
    assert re.fullmatch(r"a=b,c=true,containerd.io/gc.expire=20.*Z", labels[first])
    assert command.out("leases", "ls", "-q", "id==mine") == "mine\n"
    [plain] = command.json("leases", "list", "--json", "labels.a==b")
    assert (plain["ID"], plain["Resources"]) == (first, [])
    [plain] = command.json("leases", "ls", "--json", "id==mine")
    assert plain["ExpiresAt"] is None
    assert command.out("leases", "delete", "--sync", "mine", first) == f"mine\n{first}\n"
    command.error("leases", "rm", "mine", code=3)
    assert command.out("leases", "ls", "-q") == "short\n"


def test_a_lease_keeps_what_it_holds(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with file.open("rb") as stream:
        command.run("content", "ingest", "key", stdin=stream)
    command.run("leases", "create", "--id", "never", "-x", "0")
    with command.open() as store:
        held = Resource.content(parse_digest(digest(b"content")))
        store.images.leases.add("never", [held])
    command.run("snapshots", "cleanup")
    [lease] = command.json("leases", "ls", "--json")
    assert lease["Resources"] == [{"Type": "content", "ID": digest(b"content")}]
    assert len(command.json("content", "ls", "--json")) == 1
    command.run("leases", "rm", "never")
    assert command.json("content", "ls", "--json") == []


def test_aliases(command: Command) -> None:
    for words in (
        ["i", "list"], ["image", "ls"], ["content", "list"], ["leases", "list"], ["c", "list"],
        ["container", "ls"], ["t", "list"], ["task", "ls"],
    ):  # fmt: skip
        command.run(*words)
        command.json(*words, "--json")


def test_labels_of_containers(command: Command, container_id: str) -> None:
    with command.open() as store:
        store.containers.create(Container(id=container_id, labels={"a": "b"}))
    assert command.out("containers", "label", container_id, "c=d") == "a=b,c=d\n"
    assert command.json("containers", "label", "--json", container_id) == {"a": "b", "c": "d"}
    [listed] = command.json("containers", "ls", "--json")
    assert (listed["ID"], listed["Labels"]) == (container_id, {"a": "b", "c": "d"})
