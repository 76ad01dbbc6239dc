"""Records of opened files, and the layers that have them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError, NotFound
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import TarReader
from lamina.formats.tar.layer import clean
from lamina.images.recording import RecordedFile, parse_record, read_record, write_record
from lamina.images.recording_layers import find_layers

MANIFEST = "sha256:" + "ab" * 32


class Tar:
    """A layer, entry by entry."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._archive = tarfile.TarFile(fileobj=self._out, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, type: bytes = tarfile.REGTYPE, target: str = "") -> Tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = type, target
        self._archive.addfile(info)
        return self

    def members(self) -> list[tuple[bytes, bytes]]:
        self._archive.close()
        reader = TarReader(ChunkStream([self._out.getvalue()]))
        found = []
        while (entry := reader.next()) is not None:
            found.append((entry.name, entry.type))
        return found


def files(*names: str) -> Tar:
    tar = Tar()
    for name in names:
        tar.add(name)
    return tar


def found(paths: str, *layers: Tar) -> dict[str, int]:
    """Return the index of the layer, base 0, for each path; layers are given base first."""
    archives = [layer.members() for layer in reversed(layers)]
    depths = find_layers([path.encode() for path in paths.split()], archives)
    return {path.decode(): len(layers) - 1 - depth for path, depth in depths.items()}


def test_the_topmost_layer_that_has_it() -> None:
    base, middle, top = files("a", "b", "c"), files("./b", "/d/e"), files("c", "f")
    layers = {"a": 0, "b": 1, "c": 2, "d/e": 1, "f": 2}
    assert found("a b c d/e f none d/none", base, middle, top) == layers


def test_a_deleted_file_is_in_no_layer() -> None:
    assert found("a b", files("a", "b"), files(".wh.a")) == {"b": 0}
    assert found("d/a d/b", files("d/a", "d/b"), files("d/.wh.a")) == {"d/b": 0}


def test_a_deleted_file_that_came_back() -> None:
    assert found("a", files("a"), files(".wh.a"), files("a")) == {"a": 2}
    assert found("a", files("a"), files(".wh.a", "a")) == {"a": 1}
    assert found("a", files("a"), files("a", ".wh.a")) == {"a": 1}


def test_a_deleted_directory_takes_what_was_in_it() -> None:
    base = files("d/e/a", "d/b", "de/c")
    assert found("d/e/a d/b de/c", base, files(".wh.d")) == {"de/c": 0}
    assert found("d/e/a d/b", base, files("d/.wh.e")) == {"d/b": 0}
    again = Tar().add(".wh.d").add("d", tarfile.DIRTYPE).add("d/new")
    assert found("d/e/a d/b d/new", base, again) == {"d/new": 1}


def test_an_opaque_directory_hides_what_is_below() -> None:
    base = files("d/e/a", "d/b", "c")
    opaque = files("d/.wh..wh..opq", "d/b")
    assert found("d/e/a d/b c", base, opaque) == {"d/b": 1, "c": 0}
    assert found("d/e/a d/b c", base, files(".wh..wh..opq")) == {}


def test_a_directory_that_became_something_else() -> None:
    base = files("d/a", "e/b", "f/c")
    top = Tar().add("d").add("e", tarfile.SYMTYPE, "f").add("f", tarfile.DIRTYPE)
    assert found("d/a d e/b e f/c", base, top) == {"d": 1, "f/c": 0}


def test_hard_links_are_files_and_other_kinds_are_not() -> None:
    base = Tar().add("a").add("hard", tarfile.LNKTYPE, "a").add("soft", tarfile.SYMTYPE, "a")
    base.add("dir", tarfile.DIRTYPE).add("pipe", tarfile.FIFOTYPE).add("node", tarfile.CHRTYPE)
    assert found("a hard soft dir pipe node", base) == {"a": 0, "hard": 0}


def test_a_file_that_became_something_else() -> None:
    assert found("a", files("a"), Tar().add("a", tarfile.SYMTYPE, "b")) == {}


def test_layers_below_are_not_read_when_all_are_found() -> None:
    def never() -> list[tuple[bytes, bytes]]:
        raise AssertionError

    archives = (each() for each in (files("a").members, never))
    assert find_layers([b"a"], archives) == {b"a": 0}


def test_lines_as_the_peer_writes_them() -> None:
    line = f'{{"path":"usr/bin/a","manifestDigest":"{MANIFEST}","layerIndex":3}}\n'.encode()
    assert parse_record(line) == [RecordedFile(b"usr/bin/a", MANIFEST, 3)]
    assert parse_record(b'{"path":"/usr//bin/./b"}\n\n') == [RecordedFile(b"usr/bin/b")]
    assert json.loads(write_record(parse_record(line))) == json.loads(line)


@given(
    st.lists(
        st.builds(
            RecordedFile,
            st.binary(min_size=1).map(lambda data: b"x" + data.replace(b"\0", b"").strip(b"/.")),
            st.sampled_from(["", MANIFEST]),
            st.none() | st.integers(0, 500),
        )
    )
)
def test_any_path_comes_back(recorded: list[RecordedFile]) -> None:
    recorded = [file._replace(path=clean(file.path)) for file in recorded]
    assert parse_record(write_record(recorded)) == recorded


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "/", "/a//.", "\0", "\udc80", "\ud800"])
)
_LINES = st.dictionaries(
    st.sampled_from(["path", "manifestDigest", "layerIndex", "other"]),
    _VALUES | st.lists(_VALUES, max_size=2),
).map(lambda fields: json.dumps(fields).encode())


@given(st.lists(_LINES | st.binary(max_size=12)).map(b"\n".join))
def test_any_lines_are_a_record_or_refused(data: bytes) -> None:
    try:
        files = parse_record(data)
    except FormatError:
        return
    assert parse_record(write_record(files)) == files


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"[]", b'"path"', b"{}", b'{"path": 1}', b'{"path": "/"}', b'{"path": "a\\u0000"}'),
        *(b'{"path": "\\ud800"}', b'{"path": "a", "layerIndex": -1}', b"[" * 100_000),
        *(b'{"path": "a", "layerIndex": true}', b'{"path": "a", "manifestDigest": 5}', b"\xff"),
    ],
)
def test_what_is_no_record(line: bytes) -> None:
    with pytest.raises(FormatError, match="record of opened files") as caught:
        parse_record(b'{"path":"a"}\n' + line)
    assert caught.value.offset == 13


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="images optimize"):
        read_record(tmp_path / "none")
