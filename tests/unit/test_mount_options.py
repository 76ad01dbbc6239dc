from __future__ import annotations

import pytest

from lamina.core.mount import Mount, escape_option, split_option, unescape_option
from lamina.errors import InvalidArgument
from lamina.linux import mountapi as api
from lamina.mount.options import MountOptions, parse_options


def parsed(*options: str) -> MountOptions:
    return parse_options(Mount("ext4", "/dev/sdx", options=options))


def test_flags_are_taken_out_and_the_rest_is_data() -> None:
    options = parsed("ro", "nosuid", "errors=continue", "noload")
    assert options.flags == api.MS_RDONLY | api.MS_NOSUID
    assert options.data == ("errors=continue", "noload")
    assert options.attributes == api.MOUNT_ATTR_RDONLY | api.MOUNT_ATTR_NOSUID


def test_the_last_of_two_opposites_wins() -> None:
    assert parsed("ro", "rw").flags == 0
    assert parsed("ro", "rw").cleared == api.MS_RDONLY
    assert parsed("rw", "ro").flags == api.MS_RDONLY
    assert parsed("rw", "ro").cleared == 0


@pytest.mark.parametrize(
    ("words", "attribute"),
    [
        (("noatime", "strictatime"), api.MOUNT_ATTR_STRICTATIME),
        (("strictatime", "noatime"), api.MOUNT_ATTR_NOATIME),
        (("noatime", "relatime"), api.MOUNT_ATTR_RELATIME),
    ],
)
def test_access_time_modes_exclude_each_other(words: tuple[str, ...], attribute: int) -> None:
    options = parsed(*words)
    assert options.attributes == attribute
    assert options.cleared_attributes == api.MOUNT_ATTR__ATIME


def test_comma_joined_options_are_several() -> None:
    assert parsed("ro,noexec,commit=5") == parsed("ro", "noexec", "commit=5")


def test_escaped_comma_does_not_separate() -> None:
    assert parsed(r"upperdir=/a\,b", "ro").data == (r"upperdir=/a\,b",)


def test_id_maps_keep_their_commas() -> None:
    options = parsed("uidmap=0:1000:5,5:2000:5", "gidmap=0:1:1")
    assert (options.uidmap, options.gidmap) == ("0:1000:5,5:2000:5", "0:1:1")
    assert options.data == ()


@pytest.mark.parametrize(
    "words", [("uidmap=0:1:1",), ("gidmap=0:1:1",), ("uidmap=0:1:1", "gidmap=")]
)
def test_one_id_map_alone_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="give both"):
        parsed(*words)


@pytest.mark.parametrize("option", ["X-containerd.mkfs.size=1g", "X-containerd.mkdir.path=/x"])
def test_mount_manager_options_are_refused(option: str) -> None:
    with pytest.raises(InvalidArgument, match="mount manager"):
        parsed(option)


@pytest.mark.parametrize(
    ("word", "flag", "recursive"),
    [
        ("private", api.MS_PRIVATE, False),
        ("rprivate", api.MS_PRIVATE, True),
        ("rshared", api.MS_SHARED, True),
        ("slave", api.MS_SLAVE, False),
        ("runbindable", api.MS_UNBINDABLE, True),
    ],
)
def test_propagation_words_are_no_data(word: str, flag: int, recursive: bool) -> None:
    options = parsed(word)
    assert (options.propagation, options.propagation_recursive) == (flag, recursive)
    assert options.data == ()


def test_defaults_is_accepted_and_means_nothing() -> None:
    assert parsed("defaults") == MountOptions()


def test_loop_and_direct_io_are_not_for_the_filesystem() -> None:
    options = parsed("loop", "direct-io")
    assert options.loop
    assert options.direct_io
    assert options.data == ()


@pytest.mark.parametrize("path", ["/a", "/a:b", "/a,b", "/a\\b", "/a\\:,b", "/ä\n", ""])
def test_escaping_round_trips_and_hides_separators(path: str) -> None:
    escaped = escape_option(path)
    assert unescape_option(escaped) == path
    assert split_option(escaped, ":") == [escaped]
    assert split_option(f"{escaped}:{escaped}", ":") == [escaped, escaped]
    assert split_option(f"{escaped},x", ",") == [escaped, "x"]
