"""eStargz and zstd:chunked: footers, tables of contents, units and trees of inodes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK, Inode
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.estargz.footer import (
    Kind,
    TocLocation,
    chunked_footer,
    estargz_footer,
    external_footer,
    find_toc,
    legacy_footer,
    parse_footer,
)
from lamina.formats.estargz.toc import MAX_ENTRIES, parse_toc, read_external_toc, read_toc
from lamina.formats.estargz.tree import LayerTree, to_tree
from lamina.lazy.codecs import decode
from lamina.lazy.table import Header, UnitTable
from lamina.lazy.unit import Check, Codec, Piece, Unit
from tests.estargz import make_blob, make_chunked_blob, member, sha256, tar_member, zstd_frame

OPAQUE = b"trusted.overlay.opaque"
HEAD = "1f8b08040000000000ff"
TAIL = "010000ffff0000000000000000"


class Bytes:
    """A source in memory that counts its reads."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data)
        self.reads += 1
        return self.data[offset : offset + length]


def tree_of(*entries: dict[str, Any], data_end: int = 1 << 28, **options: Any) -> LayerTree:
    data = json.dumps({"version": 1, "entries": entries}).encode()
    return to_tree(parse_toc(data, data_end, is_zstd=False), opaque_xattr=OPAQUE, **options)


def reg(name: str, size: int, offset: int, **more: Any) -> dict[str, Any]:
    digest = sha256(b"")
    return {"name": name, "type": "reg", "size": size, "offset": offset, "digest": digest} | more


def fill(source: Bytes, tree: LayerTree, codec: Codec) -> bytes:
    """Decode every unit into a cache and verify every piece."""
    cache = bytearray(tree.cache_size)
    end = 0
    for unit in tree.units:
        assert unit.cache_offset % BLOCK == 0
        assert unit.cache_offset >= end
        encoded = source.read_at(unit.source_offset, unit.source_length)
        last = unit.pieces[-1]
        decoded = bytes(decode(codec, encoded, last.inner_offset + last.length))
        for piece in unit.pieces:
            data = decoded[piece.inner_offset : piece.inner_offset + piece.length]
            assert hashlib.sha256(data).digest() == piece.digest
            cache[piece.cache_offset : piece.cache_offset + piece.length] = data
        end = unit.cache_offset + unit.cache_length
        assert end == last.cache_offset + last.length
    return bytes(cache)


def content(inode: Inode, cache: bytes) -> bytes:
    assert all(extent.device == 1 for extent in inode.extents)
    return b"".join(cache[e.offset : e.offset + e.length] for e in inode.extents)


def contents(tree: LayerTree, cache: bytes) -> dict[str, bytes]:
    found = {}
    todo: list[tuple[bytes, Inode]] = [(b"", tree.root)]
    for path, inode in todo:
        if inode.is_regular:
            found[os.fsdecode(path)] = content(inode, cache)
        todo.extend((path + b"/" + name, child) for name, child in inode.children.items())
    return {path.lstrip("/"): data for path, data in found.items()}


LONG_CHUNKED = bytes.fromhex(
    "502a4d1840000000" "6400000000000000" "3200000000000000" "4600000000000000" "0100000000000000"
    "9e00000000000000" "0a00000000000000" "1400000000000000" "476e556c496e5578"
)  # fmt: skip
"""Podman's: a TOC of 50 bytes at 100, and tar-split data of 10 bytes behind that."""


def test_footers_have_these_bytes() -> None:
    digits = "30303030303030303030303030313233"
    mark = "53544152475a"
    assert estargz_footer(0x123).hex() == HEAD + "1a0053471600" + digits + mark + TAIL
    assert legacy_footer(0x123).hex() == HEAD + "1600" + digits + mark + TAIL
    external = "53544152475a45585445524e414c544f43"
    assert external_footer().hex() == HEAD + "150053471100" + external + TAIL
    assert chunked_footer(16, 2, 3).hex() == (
        "502a4d1828000000" "1000000000000000" "0200000000000000" "0300000000000000"
        "0100000000000000" "476e556c496e5578"
    )  # fmt: skip
    sizes = [len(made) for made in (estargz_footer(1), legacy_footer(1), external_footer())]
    assert sizes == [51, 47, 46]
    assert zlib.decompress(estargz_footer(1), 31) == b""


@pytest.mark.parametrize(
    ("footer", "kind", "offset", "length"),
    [
        (estargz_footer(100), Kind.ESTARGZ, 100, 900),
        (legacy_footer(100), Kind.LEGACY, 100, 900),
        (chunked_footer(100, 50, 70), Kind.CHUNKED, 100, 50),
        (LONG_CHUNKED, Kind.CHUNKED, 100, 50),
        (external_footer(), Kind.EXTERNAL, 1000, 0),
    ],
)
def test_a_footer_is_found_in_one_read(footer: bytes, kind: Kind, offset: int, length: int) -> None:
    source = Bytes(bytes(1000) + footer)
    found = find_toc(source)
    assert (found.kind, found.offset, found.length) == (kind, offset, length)
    assert source.reads == 1
    for cut in range(1, len(footer) + 1):
        with pytest.raises(FormatError):
            find_toc(Bytes(source.data[:-cut]))
    for at in range(len(footer)):
        changed = bytearray(source.data)
        changed[1000 + at] ^= 0x80
        with contextlib.suppress(FormatError):
            # Only a number can differ, and then it lies inside of the blob.
            assert find_toc(Bytes(bytes(changed))).offset < 1000 + len(footer)


@pytest.mark.parametrize(
    "footer",
    [
        estargz_footer(0), estargz_footer(1000), estargz_footer(1 << 62), legacy_footer(1000),
        chunked_footer(8, 5, 5), chunked_footer(999, 2, 5), chunked_footer(1 << 63, 1, 1),
        chunked_footer(100, 0, 5), bytes(24) + chunked_footer(100, 50, 70)[8:],
    ],
)  # fmt: skip
def test_footers_that_lead_out_of_the_blob_are_refused(footer: bytes) -> None:
    with pytest.raises(FormatError):
        find_toc(Bytes(bytes(1000) + footer))


@given(st.binary(max_size=72), st.integers(0, 1 << 63))
def test_no_footer_breaks_the_parser(tail: bytes, size: int) -> None:
    with contextlib.suppress(FormatError):
        parse_footer(tail, max(size, len(tail)))


FILES = {
    "empty": b"",
    "small": b"one\n",
    "d/exact": os.urandom(8192),
    "d/odd": os.urandom(20000) + bytes(12345),
    "last": b"x" * 4097,
}


@pytest.mark.parametrize("shared", [0, 700, 9000, 1 << 20])
@pytest.mark.parametrize("chunk", [1000, 4096, 5000, 6144, 1 << 22])
def test_every_file_is_read_through_the_units(chunk: int, shared: int) -> None:
    source = Bytes(make_blob(FILES, chunk, shared=shared))
    toc = read_toc(source, find_toc(source))
    tree = to_tree(toc, opaque_xattr=OPAQUE)
    assert contents(tree, fill(source, tree, Codec.GZIP)) == FILES
    with tarfile.open(fileobj=io.BytesIO(source.data), mode="r:gz") as tar:
        assert tar.getnames() == [*FILES, "stargz.index.json"]


SPARSE = {
    "all": bytes(50_000),
    "begins": bytes(70_000) + b"data",
    "ends": b"data" + bytes(70_000),
    "within a block": b"a" * 100 + bytes(2000) + b"b" * 5000,
    "over an edge": b"a" * 4000 + bytes(1100) + b"b" * 4000,
    "up to an edge": b"a" * 3000 + bytes(1096) + b"b" * 4096 + bytes(4096) + b"c",
    "many": b"".join(os.urandom(seed) + bytes(seed * 37) for seed in range(27, 400, 31)),
}


@pytest.mark.parametrize("chunk", [700, 4096, 5000, 1 << 20])
def test_holes_of_podman_are_neither_fetched_nor_anything_but_zeros(chunk: int) -> None:
    files = FILES | SPARSE
    source = Bytes(make_chunked_blob(files, chunk))
    assert decode(Codec.ZSTD, source.data, 1 << 10)[:3] == b"emp"
    toc = read_toc(source, find_toc(source))
    assert toc.is_zstd
    tree = to_tree(toc, opaque_xattr=OPAQUE)
    units = [
        Unit(*unit[:4], Codec.ZSTD, [Piece(*p[:3], Check.SHA256, p.digest) for p in unit.pieces])
        for unit in tree.units
    ]
    UnitTable.write(io.BytesIO(), Header(source.size, tree.cache_size), units)
    assert contents(tree, fill(source, tree, Codec.ZSTD)) == files
    holes = sum(body.count(bytes(4096)) * 4096 for body in SPARSE.values())
    fetched = sum(p.length for unit in tree.units for p in unit.pieces)
    assert fetched < sum(map(len, files.values())) - holes / 2


@pytest.mark.parametrize("chunk", [5000, 8192])
def test_the_table_and_the_image_of_a_layer_agree(chunk: int) -> None:
    source = Bytes(make_blob(FILES, chunk, shared=3000))
    tree = to_tree(read_toc(source, find_toc(source)), opaque_xattr=OPAQUE)
    units = [
        Unit(*unit[:4], Codec.GZIP, [Piece(*p[:3], Check.SHA256, p.digest) for p in unit.pieces])
        for unit in tree.units
    ]
    UnitTable.write(io.BytesIO(), Header(source.size, tree.cache_size), units)
    out = io.BytesIO()
    write_image(tree.root, out, devices=[Device(tree.cache_size // BLOCK)])
    image = Image(Bytes(out.getvalue()), [Bytes(fill(source, tree, Codec.GZIP))])
    for name, body in FILES.items():
        assert image.read(image.lookup(name.encode()), 0, len(body) + 1) == body


def test_a_blob_that_is_cut_off_has_no_toc() -> None:
    data = make_blob({"a": b"text"}, 4096)
    for length in range(len(data)):
        source = Bytes(data[:length])
        with pytest.raises(FormatError):
            read_toc(source, find_toc(source))


def test_the_digest_is_that_of_the_json_as_it_is() -> None:
    text = b'{ "version" :1,\n\t"entries": [], "later": {} }\n'
    assert parse_toc(text, 1, is_zstd=False).digest == sha256(text)
    layer = member(tar_member("stargz.index.json", text) + text + bytes(-len(text) % 512))
    location = find_toc(Bytes(bytes(100) + external_footer()))
    assert read_external_toc(io.BytesIO(layer).read, location).digest == sha256(text)
    with pytest.raises(FormatError, match="another image"):
        read_toc(Bytes(b""), location)


def test_inodes_have_what_their_entries_say() -> None:
    value = base64.b64encode(b"\0v").decode()
    tree = tree_of(
        {"name": "./", "type": "dir", "mode": 0o40700, "uid": 5, "modtime": "1970-01-01T00:00:02Z"},
        {"name": "/a/../b//f", "type": "reg", "mode": 0o104755, "gid": 7,
         "xattrs": {"user.k": value, "trusted.overlay.opaque": value}},
        {"name": "l", "type": "symlink", "linkName": "../x", "modtime": "0001-01-01T00:00:00Z"},
        {"name": "n", "type": "char", "devMajor": 1, "devMinor": 300},
        {"name": "h2", "type": "hardlink", "linkName": "h1"},
        {"name": "h1", "type": "hardlink", "linkName": "/b/f"},
    )  # fmt: skip
    root = tree.root
    assert (root.mode, root.uid, root.mtime) == (stat.S_IFDIR | 0o700, 5, 2_000_000_000)
    b = root.children[b"b"]
    assert b.mode == stat.S_IFDIR | 0o755
    f = b.children[b"f"]
    assert (f.mode, f.gid, f.xattrs) == (stat.S_IFREG | 0o4755, 7, {b"user.k": b"\0v"})
    assert root.children[b"h1"] is f
    assert root.children[b"h2"] is f
    assert (root.children[b"l"].target, root.children[b"l"].mtime) == (b"../x", 0)
    assert root.children[b"n"].rdev == os.makedev(1, 300)


def test_directories_without_entry_look_as_below() -> None:
    lower = Inode(stat.S_IFDIR | 0o1777, 3, 4, 5, xattrs={b"user.a": b"a", OPAQUE: b"y"})
    tree = tree_of(
        {"name": "tmp/file", "type": "reg"},
        {"name": "tmp/deep/file", "type": "reg"},
        {"name": "own/file", "type": "reg"},
        {"name": "own", "type": "dir", "mode": 0o700},
        implied={b"tmp": lower, b"own": lower}.get,
    )
    found = tree.root.children
    tmp, own = found[b"tmp"], found[b"own"]
    assert (tmp.mode, tmp.uid, tmp.gid, tmp.mtime) == (lower.mode, 3, 4, 5)
    assert (tmp.xattrs, sorted(tmp.children)) == ({b"user.a": b"a"}, [b"deep", b"file"])
    assert (tmp.children[b"deep"].mode, own.mode) == (stat.S_IFDIR | 0o755, stat.S_IFDIR | 0o700)


def test_file_has_what_its_last_link_says() -> None:
    values = {name: base64.b64encode(name.encode()).decode() for name in ("user.a", "user.b")}
    tree = tree_of(
        {"name": "f", "type": "reg", "mode": 0o600, "xattrs": {"user.a": values["user.a"]}},
        {"name": "h1", "type": "hardlink", "linkName": "f", "mode": 0o4640, "uid": 3, "gid": 4,
         "modtime": "1970-01-01T00:00:07Z", "xattrs": {"user.b": values["user.b"]}},
        {"name": "h2", "type": "hardlink", "linkName": "f"},
        {"name": "l", "type": "symlink", "linkName": "f", "uid": 1},
        {"name": "l2", "type": "hardlink", "linkName": "l", "mode": 0o640, "uid": 2},
    )  # fmt: skip
    f, link = tree.root.children[b"f"], tree.root.children[b"l"]
    assert (f.mode, f.uid, f.gid, f.mtime) == (stat.S_IFREG | 0o4640, 3, 4, 7_000_000_000)
    assert f.xattrs == {b"user.a": b"user.a", b"user.b": b"user.b"}
    assert (link.mode, link.uid) == (stat.S_IFLNK | 0o777, 2)


def test_deletions_become_those_of_overlayfs() -> None:
    tree = tree_of(
        {"name": "d/.wh.gone", "type": "reg", "uid": 3},
        {"name": "d/.wh.kept", "type": "reg"},
        {"name": "d/kept", "type": "reg"},
        {"name": "e/.wh..wh..opq", "type": "reg"},
        {"name": ".wh.new", "type": "reg"},
        {"name": "new", "type": "dir"},
        {"name": "new/file", "type": "reg"},
    )
    new = tree.root.children[b"new"]
    assert (new.xattrs, sorted(new.children)) == ({OPAQUE: b"y"}, [b"file"])
    d, e = tree.root.children[b"d"], tree.root.children[b"e"]
    assert sorted(d.children) == [b"gone", b"kept"]
    gone = d.children[b"gone"]
    assert (gone.mode, gone.rdev, gone.uid) == (stat.S_IFCHR, 0, 3)
    assert d.children[b"kept"].is_regular
    assert (e.xattrs, e.children) == ({OPAQUE: b"y"}, {})


def test_landmarks_are_hidden_and_told_of() -> None:
    before = reg("a", 1, 10)
    tree = tree_of(before, reg(".prefetch.landmark", 1, 77), reg("b", 1, 99))
    assert (tree.prefetch, sorted(tree.root.children)) == (77, [b"a", b"b"])
    assert tree_of(before, reg(".no.prefetch.landmark", 1, 77)).prefetch == 0
    assert tree_of(before).prefetch is None


def test_the_last_entry_of_a_name_wins() -> None:
    tree = tree_of(reg("a", 5, 10), reg("b", 4, 20), reg("./a", 3, 30))
    assert tree.root.children[b"a"].size == 3
    assert [(u.source_offset, u.source_length) for u in tree.units[:1]] == [(20, 10)]
    assert [u.source_offset for u in tree.units] == [20, 30]


CHUNKED = reg("a", 10, 10, chunkSize=5)
ZEROS = {"name": "", "type": "chunk", "chunkType": "zeros", "offset": 10, "innerOffset": 10,
         "chunkOffset": 10, "chunkSize": (1 << 19) - 10}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "entries"),
    [
        ("type", [{"name": "a", "type": "socket"}]),
        ("type", [{"name": "a", "type": "chunk"}]),
        ("type", [{"name": "a", "type": "dir"}, {"name": "a", "type": "chunk"}]),
        ("size", [CHUNKED]),
        ("chunkOffset", [CHUNKED, {"name": "", "type": "chunk", "chunkOffset": 4, "offset": 20}]),
        ("chunkSize", [CHUNKED, {"name": "", "type": "chunk", "chunkOffset": 5, "chunkSize": 6}]),
        ("chunkSize", [reg("a", 1 << 40, 10)]),
        ("chunkDigest", [reg("a", 1, 10, digest="")]),
        ("chunkDigest", [reg("a", 1, 10, digest="sha256:00")]),
        ("chunkType", [reg("a", 1, 10, chunkType="holes")]),
        ("offset", [reg("a", 1 << 20, 10, chunkSize=10, chunkDigest=sha256(b"")), ZEROS,
                    {"name": "", "type": "chunk", "offset": 10, "innerOffset": 1 << 19,
                     "chunkOffset": 1 << 19, "chunkDigest": sha256(b"")}]),
        ("offset", [reg("a", 1, 0)]),
        ("offset", [reg("a", 1, 1 << 40)]),
        ("innerOffset", [reg("a", 2, 10), reg("b", 2, 10, innerOffset=1)]),
        ("name", [reg("a", 0, 0), reg("a/b", 0, 0)]),
        ("name", [reg("x" * 256, 0, 0)]),
        ("name", [reg("x\0", 0, 0)]),
        ("name", [reg("y/" * 3000 + "x", 0, 0)]),
        ("linkName", [{"name": "a", "type": "hardlink", "linkName": "a"}]),
        ("linkName", [{"name": "a", "type": "hardlink", "linkName": "b"},
                      {"name": "b", "type": "hardlink", "linkName": "a"}]),
        ("linkName", [{"name": "a", "type": "hardlink", "linkName": "nothing"}]),
        ("linkName", [{"name": "a", "type": "hardlink", "linkName": "/"},
                      {"name": "/", "type": "dir"}]),
        ("linkName", [{"name": "a", "type": "symlink"}]),
        ("devMajor", [{"name": "a", "type": "block", "devMajor": 1 << 20}]),
        ("xattrs", [reg("a", 0, 0, xattrs={"user." + "x" * 300: ""})]),
        ("uid", [reg("a", 0, 0, uid=-1)]),
        ("size", [reg("a", 1 << 70, 0)]),
        ("modtime", [reg("a", 0, 0, modtime="yesterday")]),
    ],
)  # fmt: skip
def test_a_toc_that_breaks_a_rule_is_refused(field: str, entries: Sequence[Any]) -> None:
    with pytest.raises(FormatError, match=field):
        tree_of(*entries)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b'{"version":2,"entries":[]}', b"[" * 100000, b'{"version":1,"e']
)
def test_what_is_no_toc_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_toc(text, 1, is_zstd=False)


def test_a_small_toc_cannot_ask_for_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="entries"):
        parse_toc(b"{" * (2 * MAX_ENTRIES + 2), 1, is_zstd=False)
    monkeypatch.setattr("lamina.formats.estargz.toc.MAX_ENTRIES", 3)
    fifos = [{"name": str(number), "type": "fifo"} for number in range(4)]
    assert len(tree_of(*fifos[:3]).root.children) == 3
    with pytest.raises(FormatError, match="at most 3 entries"):
        tree_of(*fifos)


def test_an_entry_cannot_be_larger_than_an_inode() -> None:
    xattrs = {f"user.{number}": "" for number in range(80_000)}
    with pytest.raises(FormatError, match="bytes as entry 1"):
        tree_of({"name": "a", "type": "fifo"}, {"name": "b", "type": "fifo", "xattrs": xattrs})


@pytest.mark.parametrize("kind", [Kind.ESTARGZ, Kind.CHUNKED])
def test_a_toc_cannot_unpack_to_more_than_is_held(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr("lamina.formats.estargz.toc.MAX_TOC", 1 << 20)
    json = b'{"version":1,"entries":[]}' + b" " * (2 << 20)
    if kind is Kind.ESTARGZ:
        packed = member(tar_member("stargz.index.json", json) + json)
    else:
        packed = zstd_frame(json)
    assert len(packed) < 10_000
    location = TocLocation(kind, 0, len(packed), len(json), 0)
    with pytest.raises(FormatError, match="at most 1048576 bytes of TOC"):
        read_toc(Bytes(packed), location)
    with pytest.raises(FormatError, match="at most 268435456 bytes of TOC"):
        read_toc(Bytes(packed), location._replace(length=(256 << 20) + 1))


def test_links_that_lead_through_each_other_take_no_long_time() -> None:
    count = 20_000
    links = [
        {"name": f"l{number}", "type": "hardlink", "linkName": f"l{number + 1}"}
        for number in range(count)
    ]
    tree = tree_of(*links, {"name": f"l{count}", "type": "fifo"})
    assert len({id(inode) for inode in tree.root.children.values()}) == 1
    assert len(tree.root.children) == count + 1
    with pytest.raises(FormatError, match="linkName"):
        tree_of(*links, {"name": f"l{count}", "type": "hardlink", "linkName": "l0"})


def test_small_files_of_one_stream_cannot_take_a_unit_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lamina.formats.estargz.units.MAX_UNIT", 1 << 20)
    entries = [
        reg(f"f{number}", 1, 10, innerOffset=number + 1, digest=sha256(b"x"))
        for number in range((1 << 20) // BLOCK + 2)
    ]
    with pytest.raises(FormatError, match="units of at most"):
        tree_of(*entries)


def test_names_cannot_ask_for_directories_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.formats.estargz.directories._MAX_IMPLIED", 4)
    tree_of({"name": "a/b/c", "type": "fifo"}, {"name": "d/e/f", "type": "fifo"})
    with pytest.raises(FormatError, match="directories"):
        tree_of({"name": "a/b/c", "type": "fifo"}, {"name": "d/e/f/g", "type": "fifo"})


NAMES = st.sampled_from(["", "a", "a/b", "./a", "../a", "b/c/d", ".wh.a", "a/.wh..wh..opq", "/"])
NUMBERS = st.sampled_from([0, 1, 5, 4096, 5000, 8192, 1 << 30, 1 << 50])
ENTRY = st.fixed_dictionaries(
    {
        "name": NAMES,
        "type": st.sampled_from(["dir", "reg", "symlink", "hardlink", "char", "fifo", "chunk"]),
    },
    optional={
        **dict.fromkeys(
            ["size", "offset", "innerOffset", "chunkOffset", "chunkSize", "mode"], NUMBERS
        ),
        "linkName": NAMES,
        "chunkDigest": st.just(sha256(b"")),
    },
)


@settings(max_examples=300)
@given(st.lists(ENTRY, max_size=8))
def test_a_hostile_toc_is_refused_or_makes_a_sound_tree(entries: list[dict[str, Any]]) -> None:
    try:
        tree = tree_of(*entries, data_end=1 << 28)
    except FormatError:
        return
    end = 0
    for unit in tree.units:
        assert end <= unit.cache_offset
        assert unit.cache_offset % BLOCK == 0
        assert 0 < unit.source_length <= (1 << 28) - unit.source_offset
        end = unit.cache_offset + unit.cache_length
    assert end <= tree.cache_size
    pieces = [piece for unit in tree.units for piece in unit.pieces]
    assert all(a.cache_offset + a.length <= b.cache_offset for a, b in zip(pieces, pieces[1:]))  # noqa: B905, RUF007
