"""Users of a container: the rules, and that its files cannot lead outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.errors import InvalidArgument, LaminaError, NotFound
from lamina.runtime.user import User, account_files, resolve

_FILES = {
    "/etc/passwd": "root:x:0:0:r:/root:/bin/sh\n# comment\nbroken line\n"
    "app:x:1000:1001::/home:/bin/sh\n77:x:5:5::/:/bin/sh\nbad:x:x:y::/:\n",
    "/etc/group": "root:x:0:\nwheel:x:10:root,app\nothers:x:11:x,app,y\napp:x:1001:\n",
}


def _resolve(text: str) -> User:
    return resolve(text, lambda path: _FILES[path])


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (0, 10))),
        ("root", User(0, 0, (0, 10))),
        ("0", User(0, 0, (0, 10))),
        ("app", User(1000, 1001, (1001, 10, 11))),
        ("1000", User(1000, 1001, (1001, 10, 11))),
        ("app:wheel", User(1000, 10, (10, 11))),
        ("app:500", User(1000, 500, (500, 10, 11))),
        ("4242", User(4242, 0, (0,))),
        ("4242:4343", User(4242, 4343, (4343,))),
        ("77", User(77, 0, (0,))),
    ],
)
def test_resolved(text: str, user: User) -> None:
    assert _resolve(text) == user


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nobody", NotFound),
        ("bad", NotFound),
        ("app:nogroup", NotFound),
        ("a:b:c", InvalidArgument),
        ("app:", InvalidArgument),
        (":wheel", InvalidArgument),
        ("4294967295", InvalidArgument),
        ("-1", NotFound),
    ],
)
def test_refused(text: str, error: type[LaminaError]) -> None:
    with pytest.raises(error):
        _resolve(text)


def test_without_files_only_numbers_work(tmp_path: Path) -> None:
    accounts = account_files(tmp_path)
    assert resolve("", accounts) == User(0, 0, (0,))
    with pytest.raises(NotFound):
        resolve("root", accounts)


def test_symbolic_link_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("evil:x:0:0::/:\n")
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    for target in ("../../outside", f"{tmp_path}/outside", "/etc/../../../outside"):
        (rootfs / "etc/passwd").symlink_to(target)
        with pytest.raises(NotFound):
            resolve("evil", account_files(rootfs))
        (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/real")
    (rootfs / "real").write_text("good:x:8:9::/:\n")
    assert resolve("good", account_files(rootfs)).uid == 8


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/passwd"
    os.mkfifo(path)
    with pytest.raises(InvalidArgument):
        resolve("app", account_files(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidArgument):
        resolve("app", account_files(tmp_path))
    path.rmdir()
    path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(InvalidArgument):
        resolve("app", account_files(tmp_path))
    path.unlink()
    path.symlink_to("passwd")
    with pytest.raises(InvalidArgument):
        resolve("app", account_files(tmp_path))
