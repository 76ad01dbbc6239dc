"""Archives that try to leave the root: containerd's table of breakouts, and more."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.errors import FormatError, LaminaError
from tests.archives import Archive, apply
from tests.trees import describe

Check = Callable[[Path], None]


def base() -> Archive:
    """Return the start that the cases share."""
    return Archive().dir("etc").file("etc/passwd", "all users", mode=0o644)


def has(name: str, content: str) -> Check:
    def check(root: Path) -> None:
        path = root / name
        assert not path.is_symlink()
        assert path.read_text() == content

    return check


def is_same_file(one: str, other: str) -> Check:
    def check(root: Path) -> None:
        first, second = ((root / name).lstat().st_ino for name in (one, other))
        assert first == second

    return check


def is_other_file(one: str, other: str) -> Check:
    def check(root: Path) -> None:
        assert (root / one).lstat().st_ino != (root / other).lstat().st_ino

    return check


def points_to(name: str, target: str) -> Check:
    def check(root: Path) -> None:
        assert os.readlink(root / name) == target

    return check


def lacks(name: str) -> Check:
    def check(root: Path) -> None:
        assert not os.path.lexists(root / name)

    return check


CASES: dict[str, tuple[Archive, list[Check]]] = {
    "symlink absolute": (
        base().symlink("localetc", "/etc").file("localetc/unbroken", "written"),
        [has("etc/unbroken", "written")],
    ),
    "symlink up and out": (
        base().dir("dummy").symlink("dummy/localetc", "../../../../../etc")
        .file("dummy/localetc/unbroken", "written"),
        [has("etc/unbroken", "written")],
    ),
    "symlinks to symlinks, absolute": (
        base().symlink("one", "/two").symlink("two", "/etc").file("one/unbroken", "written"),
        [has("etc/unbroken", "written")],
    ),
    "symlinks to symlinks, relative": (
        base().dir("dummy").dir("dummy/a").symlink("dummy/a/one", "../../../../two")
        .symlink("two", "../../../etc").file("dummy/a/one/unbroken", "written"),
        [has("etc/unbroken", "written")],
    ),
    "truncation through a symlink": (
        base().file("etc/emptied", "content").symlink("localetc", "/etc").file("localetc/emptied"),
        [has("etc/emptied", "")],
    ),
    "hard link relative": (
        base().symlink("breakouts", "../../etc").link("localpasswd", "breakouts/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "hard link down and out": (
        base().dir("down").symlink("breakouts", "down/../../../etc")
        .link("localpasswd", "breakouts/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "hard link absolute": (
        base().symlink("localetc", "/etc").link("localpasswd", "localetc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "hard link relative long": (
        base().symlink("localetc", "../../../../../../../../../../etc")
        .link("localpasswd", "localetc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "hard link up and out": (
        base().symlink("up", "upandout/../../../etc").dir("upandout")
        .link("localpasswd", "up/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "hard link to a relative name outside": (
        base().link("localpasswd", "../../../../../etc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "hard link to an absolute name": (
        base().link("localpasswd", "/etc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "symlink named ..": (
        base().symlink("..", "/etc").link("localpasswd", "etc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "symlink without a name": (
        base().symlink("", "/etc").link("localpasswd", "etc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "symlink named like its own parent": (
        base().symlink("localetc/sub/..", "/etc").link("localpasswd", "/localetc/passwd"),
        [is_same_file("localpasswd", "etc/passwd"), points_to("localetc", "/etc")],
    ),
    "directory name with a slash at the end": (
        base().dir("localetc/").link("localetc/localpasswd", "/etc/passwd"),
        [is_same_file("localetc/localpasswd", "etc/passwd")],
    ),
    "symlink in the place of a directory": (
        base().dir("localetc").symlink("localetc", "/etc").link("localpasswd", "localetc/passwd"),
        [is_same_file("localpasswd", "etc/passwd")],
    ),
    "relative symlink in the place of a directory": (
        base().dir("localetc").symlink("localetc", "../../etc").file("localetc/unbroken", "yes"),
        [has("etc/unbroken", "yes")],
    ),
    "directory in the place of a symlink": (
        base().symlink("localetc", "etc").dir("localetc").file("localetc/unbroken", "not in etc"),
        [has("localetc/unbroken", "not in etc"), lacks("etc/unbroken")],
    ),
    "directory in the place of a symlink that was used": (
        base().dir("etc/x").symlink("localetc", "etc").link("localetc/localpasswd", "etc/passwd")
        .dir("localetc").file("localetc/localpasswd", "other"),
        [
            is_other_file("localetc/localpasswd", "etc/passwd"),
            is_same_file("etc/localpasswd", "etc/passwd"),
            has("etc/passwd", "all users"),
        ],
    ),
    "whiteout of a symlink": (
        base().symlink("localetc", "/etc").file(".wh.localetc"),
        [has("etc/passwd", "all users"), lacks("localetc")],
    ),
    "whiteout through a symlink": (
        base().symlink("localetc", "/etc").file("localetc/.wh.passwd"),
        [lacks("etc/passwd"), points_to("localetc", "/etc")],
    ),
    "directory named like a whiteout": (
        base().file(".wh.etc/somefile", "kept"),
        [has("etc/passwd", "all users"), has(".wh.etc/somefile", "kept")],
    ),
    "whiteout below a dangling symlink": (
        base().symlink("localetc", "/dne").file("localetc/.wh.etc"),
        [has("etc/passwd", "all users")],
    ),
    "whiteout with .. in its name": (
        base().file("dne/../.wh.etc"),
        [lacks("etc")],
    ),
    "symlink to the root and a directory in turn": (
        base().dir("foo").symlink("foo", "/").dir("foo").file("foo/unbroken", "inside foo"),
        [has("foo/unbroken", "inside foo"), lacks("unbroken")],
    ),
    "hard link to a symlink whose target comes later": (
        base().symlink("localetc", "/etc/later").link("other", "localetc").file("etc/later", "x"),
        [points_to("other", "/etc/later"), has("etc/later", "x")],
    ),
    "hard link to a relative symlink": (
        base().symlink("localetc", "../../../etc/passwd").link("other", "localetc"),
        [points_to("other", "../../../etc/passwd"), is_same_file("other", "localetc")],
    ),
    "names that are absolute or go up": (
        base().file("/absolute", "1").file("../../up", "2").file("a/../../../up2", "3"),
        [has("absolute", "1"), has("up", "2"), has("up2", "3")],
    ),
    "file through a symlink to a file outside": (
        base().symlink("out", "../../../../../../../../../outside").file("out", "replaced"),
        [has("out", "replaced")],
    ),
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a directory beside the root that must stay as it is."""
    directory = tmp_path / "etc"
    directory.mkdir()
    (directory / "passwd").write_text("the host's users")
    (directory / "passwd").chmod(0o400)
    (tmp_path / "outside").write_text("untouched")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_stays_inside(outside: Path, case: str) -> None:
    archive, checks = CASES[case]
    before = {name: e for name, e in describe(outside).items() if name != "."}
    apply(archive.data(), outside / "root")
    for check in checks:
        check(outside / "root")
    after = {name: e for name, e in describe(outside).items() if not name.startswith(("root", "."))}
    assert after == before


@pytest.mark.parametrize("name", [".wh...", "etc/.wh...", ".wh..", "etc/.wh..", ".wh.", "etc/.wh."])
def test_whiteouts_that_name_no_file(outside: Path, name: str) -> None:
    with pytest.raises(FormatError, match="whiteout"):
        apply(base().file(name), outside / "root")
    assert (outside / "etc/passwd").exists()
    assert (outside / "root/etc/passwd").exists()


def test_hard_link_to_a_symlink_leaves_its_target_alone(outside: Path) -> None:
    secret = outside / "etc/passwd"
    archive = base().symlink("out", str(secret)).link("out2", "out", mode=0o777)
    apply(archive, outside / "root")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o400
    assert os.readlink(outside / "root/out2") == str(secret)


@pytest.mark.parametrize(
    ("archive", "text"),
    [
        (base().link("x", "missing"), "link to something that exists"),
        (base().link("x", "etc"), "no directory"),
        (base().link("x", ".."), "no directory"),
        (base().link("etc/passwd", "etc/passwd"), "link to something that exists"),
        (base().file("etc/passwd/x", "y"), "through directories"),
        (base().symlink("a", "b").symlink("b", "a").file("a/x"), "loop"),
        (base().file("x" * 300), "255 bytes"),
        (base().file("/".join(["x" * 200] * 30)), "4096"),
        (base().entry("x", b"7"), "type"),
        (base().entry("x", b"V"), "type"),
        (base().file("x", uid=-1), "32 bits"),
        (base().file("x", gid=1 << 33), "32 bits"),
        (base().file("x", uid=(1 << 32) - 1), "32 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_archives_that_ask_for_what_cannot_be(outside: Path, archive: Archive, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        apply(archive.data(), outside / "root")


def test_a_chain_of_links_too_long_for_the_kernel_is_refused(outside: Path) -> None:
    archive = Archive()
    for number in range(300):
        archive.symlink(f"l{number}", f"l{number + 1}")
    with pytest.raises(LaminaError):
        apply(archive.file("l0/x"), outside / "root")
