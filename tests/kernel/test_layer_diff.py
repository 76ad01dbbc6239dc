"""Differences: containerd's order of entries, and the proof that applying one gives the tree."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.core.digest import sha256
from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition
from lamina.formats.compression import Compression, decompress
from lamina.layer.diff import Diff, write_diff, write_upper_diff
from lamina.layer.target import LayerTarget
from lamina.mount import temp_mount
from tests.archives import apply
from tests.trees import describe

pytestmark = [pytest.mark.root, pytest.mark.overlay]

OLD = 1_500_000_000
NEW = 1_600_000_000
Step = Callable[[Path], object]


def sh(script: str) -> Step:
    """Return a step that runs a shell script in the tree."""

    def step(root: Path) -> None:
        subprocess.run(["sh", "-euc", script], cwd=root, check=True)

    return step


def collect(call: Callable[[Callable[[bytes], object]], Diff]) -> tuple[Diff, bytes]:
    out = io.BytesIO()
    diff = call(out.write)
    return diff, out.getvalue()


def plain_diff(lower: Path | None, upper: Path, epoch: int | None = None) -> bytes:
    none = Compression.NONE
    return collect(
        lambda write: write_diff(lower, upper, write, compression=none, source_date_epoch=epoch)
    )[1]


def listing(data: bytes) -> list[str]:
    """Return the entries as `name`, or `name=target` for links."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [
            member.name
            + ("/" if member.isdir() else "")
            + (f"={member.linkname}" if member.islnk() else "")
            for member in archive
        ]


BASE = """
mkdir -p bin etc/sub usr/local/bin home
echo passwd > etc/passwd; echo a > etc/sub/a; echo b > etc/sub/b; echo sh > bin/sh
ln bin/sh usr/local/bin/sh; ln -s ../etc home/etc
"""

ORDER = {
    "nothing": ("", []),
    "parents are included": (
        "echo x > etc/sub/new",
        ["etc/", "etc/sub/", "etc/sub/new"],
    ),
    "parents of links": (
        "ln bin/sh etc/sub/sh",
        [
            "etc/",
            "etc/sub/",
            "etc/sub/sh",
            "bin/",
            "bin/sh=etc/sub/sh",
            "usr/",
            "usr/local/",
            "usr/local/bin/",
            "usr/local/bin/sh=etc/sub/sh",
        ],
    ),
    "directory permission": ("chmod 700 usr/local", ["usr/", "usr/local/"]),
    "hard link updated": (
        "echo other >> bin/sh",
        ["bin/", "bin/sh", "usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/sh=bin/sh"],
    ),
    "whiteout": ("rm etc/sub/a", ["etc/", "etc/sub/", "etc/sub/.wh.a"]),
    "whiteout of a directory": ("rm -r etc/sub", ["etc/", "etc/.wh.sub"]),
    "whiteout at the top": ("rm -r etc", [".wh.etc"]),
    "directory becomes a file": ("rm -r etc/sub; echo x > etc/sub", ["etc/", "etc/sub"]),
    "file becomes a directory": (
        "rm etc/passwd; mkdir etc/passwd; touch etc/passwd/x",
        ["etc/", "etc/passwd/", "etc/passwd/x"],
    ),
    "names sort as path elements": (
        "mkdir n n-x; touch n/a n-x/b n.c",
        ["n/", "n/a", "n-x/", "n-x/b", "n.c"],
    ),
}


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    sh(BASE + f"find . -exec touch -h -d @{OLD} {{}} +")(lower)
    subprocess.run(["cp", "-a", lower, upper], check=True)
    return lower, upper


@pytest.mark.parametrize("case", ORDER)
def test_order_of_entries(trees: tuple[Path, Path], case: str) -> None:
    lower, upper = trees
    script, expected = ORDER[case]
    sh(script)(upper)
    found = listing(plain_diff(lower, upper))
    assert found == expected
    proof(trees[0], upper, plain_diff(lower, upper))


def proof(lower: Path | None, upper: Path, layer: bytes) -> None:
    """Apply the layer to a copy of `lower` and compare with `upper`."""
    replay = upper.parent / "replay"
    if lower is None:
        replay.mkdir()
    else:
        subprocess.run(["cp", "-a", lower, replay], check=True)
    apply(layer, replay)
    assert comparable(replay) == comparable(upper)
    shutil.rmtree(replay)


def comparable(root: Path) -> dict[str, object]:
    """Return the tree with times as a layer has them, and none for directories and the root.

    A directory whose content changed is not always itself in the layer.
    """
    found: dict[str, object] = {}
    for name, entry in describe(root).items():
        is_dir = entry.mode.startswith("d")
        found[name] = entry._replace(mtime_ns=0 if is_dir else entry.mtime_ns // 10**9 * 10**9)
    del found["."]
    return found


EVERYTHING = """
mkdir -m 1777 tmp; mkdir deep; mkdir -p deep/a/b/c
echo content > deep/a/b/c/file; chmod 4755 deep/a/b/c/file; chown 5:6 deep/a/b/c/file
mknod dev c 1 3; mkfifo pipe; ln -s /absolute link; ln -s ../../escape link2
touch h1; ln h1 h2; ln h1 deep/h3
setfattr -n user.note -v hello deep/a; setfattr -n user.note -v there deep/a/b/c/file
truncate -s 3000000 hole
"""


def test_a_whole_tree_and_what_it_is(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    sh(EVERYTHING)(upper)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(upper / "socket"))
    os.setxattr(upper / "h1", "security.capability", b"\1\0\0\2\0\4" + bytes(14))
    layer = plain_diff(None, upper)
    assert "socket" not in listing(layer)
    (upper / "socket").unlink()
    proof(None, upper, layer)


@pytest.mark.parametrize("compression", list(Compression))
def test_facts_and_reproducibility(tmp_path: Path, compression: Compression) -> None:
    (tmp_path / "upper").mkdir()
    sh(EVERYTHING)(tmp_path / "upper")
    results = [
        collect(lambda write: write_diff(None, tmp_path / "upper", write, compression=compression))
        for _ in range(2)
    ]
    assert results[0] == results[1]
    diff, data = results[0]
    assert diff.size == len(data)
    file = io.BytesIO(data)
    tar = b"".join(decompress(file.read))
    assert (diff.digest, diff.diff_id) == (sha256(data), sha256(tar))
    assert apply(tar, tmp_path / "root").diff_id == diff.diff_id


def test_source_date_epoch(trees: tuple[Path, Path]) -> None:
    lower, upper = trees
    sh("echo new > etc/new; rm etc/passwd")(upper)
    os.utime(upper / "etc/new", (NEW, NEW))
    data = plain_diff(lower, upper, OLD + 5)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        times = {member.name: member.mtime for member in archive}
    assert times == {"etc": OLD + 5, "etc/new": OLD + 5, "etc/.wh.passwd": 0}


def test_content_decides_where_times_are_whole_seconds(trees: tuple[Path, Path]) -> None:
    lower, upper = trees
    sh("echo PASSWD > etc/passwd")(upper)
    os.utime(upper / "etc/passwd", (OLD, OLD))
    assert listing(plain_diff(lower, upper)) == ["etc/", "etc/passwd"]


CHANGES: list[str] = [
    "echo 1 > etc/new",
    "rm etc/passwd",
    "rm -r etc/sub; mkdir etc/sub; echo x > etc/sub/fresh",
    "chmod 700 etc/sub",
    "mv etc/passwd etc/moved",
    "echo more >> bin/sh",
    "rm -r etc; echo file > etc",
    "rm home/etc; mkdir home/etc; touch home/etc/x",
    "mkdir -p a/b/c; touch a/b/c/d; ln a/b/c/d a/e",
    "touch -d @1555555555 bin/sh",
    "chown 4:5 etc/sub/a; setfattr -n user.x -v y etc/sub/b",
    "rm -r usr/local; mkdir -p usr/local; rmdir usr/local",
    "mknod etc/dev c 7 7; ln -sf x home/etc",
    EVERYTHING + "rm -r etc/sub; rm bin/sh",
]


@pytest.mark.parametrize("script", CHANGES)
def test_an_overlay_replayed(tmp_path: Path, trees: tuple[Path, Path], script: str) -> None:
    """Change a mounted overlay; both ways to find the changes rebuild it from its parent."""
    lower, _ = trees
    upper, work = tmp_path / "up", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}", "index=off")
    mounts = [Mount("overlay", "overlay", "", options)]
    with temp_mount(mounts, dir=tmp_path) as root:
        sh(script)(root)
        subprocess.run(["cp", "-a", root, tmp_path / "truth"], check=True)
        walked = plain_diff(lower, root)
        truth = comparable(root)
    none = Compression.NONE
    _, quick = collect(lambda write: write_upper_diff(upper, [lower], write, compression=none))
    for layer in (walked, quick):
        proof(lower, tmp_path / "truth", layer)
        stacked = tmp_path / "stacked"
        stacked.mkdir()
        apply(layer, LayerTarget(stacked, True, (lower,)))
        view = (f"lowerdir={stacked}:{lower}", "ro")
        with temp_mount([Mount("overlay", "overlay", "", view)], dir=tmp_path) as root:
            assert comparable(root) == truth
        shutil.rmtree(stacked)


def test_the_quick_way_reads_no_unchanged_file(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    (upper / "d").mkdir(parents=True)
    (lower / "d").mkdir()
    for number in range(50):
        (lower / "d" / str(number)).write_text("x")
    os.mknod(upper / "d/7", 0o20000, 0)
    os.mknod(upper / "d/missing-below", 0o20000, 0)
    _, data = collect(
        lambda write: write_upper_diff(upper, [lower], write, compression=Compression.NONE)
    )
    assert listing(data) == ["d/", "d/.wh.7"]


@pytest.mark.parametrize("name", ["trusted.overlay.redirect", "trusted.overlay.metacopy"])
def test_the_quick_way_refuses_what_it_cannot_know(tmp_path: Path, name: str) -> None:
    (tmp_path / "upper/d").mkdir(parents=True)
    (tmp_path / "lower").mkdir()
    os.setxattr(tmp_path / "upper/d", name, b"/x")
    with pytest.raises(FailedPrecondition, match="redirect_dir or metacopy"):
        write_upper_diff(tmp_path / "upper", [tmp_path / "lower"], lambda data: None)
