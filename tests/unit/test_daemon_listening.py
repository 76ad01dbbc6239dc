"""The daemon's own socket: its mode, a dead daemon's, a living one's, the end."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from lamina.daemon.listening import listening, listening_tcp
from lamina.errors import FailedPrecondition, LaminaError

OWN = {"uid": os.geteuid(), "gid": os.getegid()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lamina.sock"


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_modes_and_the_end(path: Path) -> None:
    umask = os.umask(0)
    try:
        with listening(path, **OWN) as listener:
            connect(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o711
            assert not listener.getblocking()
    finally:
        os.umask(umask)
    assert not path.exists()


def test_a_directory_that_exists_keeps_its_mode(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o750)
    with listening(path, **OWN):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


@pytest.mark.root
def test_owner(path: Path) -> None:
    with listening(path, uid=1234, gid=567):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 567)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(path, **OWN):
        connect(path)


def test_another_daemon_is_refused_and_lives_on(path: Path) -> None:
    with listening(path, **OWN):
        with (
            pytest.raises(FailedPrecondition, match=f"process {os.getpid()}.*--address"),
            listening(path, **OWN),
        ):
            pass
        connect(path)


def test_another_program_is_refused_and_lives_on(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        for _ in range(3):  # the last ones meet a full queue
            with (
                pytest.raises(FailedPrecondition, match="another program listens there already"),
                listening(path, **OWN),
            ):
                pass
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(FailedPrecondition, match="no socket"), listening(path, **OWN):
        pass
    assert os.path.lexists(path)


def test_a_socket_that_somebody_has_replaced_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        with listening(path, **OWN):
            path.unlink()
            other.bind(str(path))
        assert path.is_socket()


def test_the_bodys_own_errors_pass_through(path: Path) -> None:
    with pytest.raises(FileNotFoundError), listening(path, **OWN):
        raise FileNotFoundError(2, "of the body")
    assert not path.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(LaminaError, match=r"listen: .*--address"),
        listening(tmp_path / "file" / "sock", **OWN),
    ):
        pass


def test_tcp() -> None:
    with listening_tcp("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(LaminaError, match=f"127.0.0.1:{port}.*metrics"):
            listening_tcp("127.0.0.1", port)
    with listening_tcp("", 0) as everywhere:
        assert everywhere.getsockname()[0] in {"0.0.0.0", "::"}
