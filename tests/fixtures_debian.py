"""A real Debian root file system, made once by mmdebstrap and kept."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def debian_rootfs_tar() -> Path:
    """Return the archive of a minimal Debian 12, kept in `~/.cache/lamina-tests` of the user.

    The session has another HOME, so the user database is asked. The archive is as mmdebstrap
    writes it: pax, with capabilities, device nodes and hard links.
    """
    directory = Path(pwd.getpwuid(os.getuid()).pw_dir, ".cache/lamina-tests")
    path = directory / "debian-bookworm.tar"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"unfinished-{os.getpid()}.tar"
    packages = "iputils-ping,attr,acl"
    argv = ["mmdebstrap", "--variant=apt", f"--include={packages}", "bookworm", str(unfinished)]
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        unfinished.unlink(missing_ok=True)
        reason = f"debian: mmdebstrap failed: {error.stderr.strip().splitlines()[-1:]}"
        if "debian" in os.environ["LAMINA_REQUIRE"].split(","):
            pytest.fail(f"LAMINA_REQUIRE asks for {reason}", pytrace=False)
        pytest.skip(reason)
    unfinished.rename(path)
    return path
