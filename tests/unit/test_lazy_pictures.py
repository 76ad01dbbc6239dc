"""Pictures of lazy layers, and the lists of paths that say what to fetch."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lamina.errors import InvalidArgument, NotFound
from lamina.lazy.blob_ranges import read_trace, source_ranges, units_in
from lamina.lazy.path_patterns import in_order, read_patterns
from lamina.lazy.picture import Cell, FileUse, PlacedFile, cells, files_read
from lamina.lazy.svg import Strip, draw
from lamina.lazy.view import LayerView
from tests.lazy_layers import Layer, make_layer

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def layer() -> Layer:
    return make_layer([[4096], [4096, 100], [8192], [4096]])


def test_cells_say_what_is_missing_unread_and_read(layer: Layer, tmp_path: Path) -> None:
    directory = layer.create(tmp_path / "layer")
    cache = layer.open(directory)
    cache.read(8192, 100)  # of the second file
    cache.prefetch([(12288, 20480)])
    view = LayerView(directory)
    cache.close()
    assert (view.local_bytes, view.unit_bytes) == (4196 + 8192, 20580)
    assert view.asked_bytes == 4196
    assert not view.is_complete
    [whole] = cells(view, 1)
    assert whole == Cell(0, 24576, 8192, 8192, 4196)
    found = cells(view, 100)
    assert [cell.kind for cell in found] == ["missing", "read", "unread", "missing"]
    assert [sum(sizes) for sizes in zip(*(cell[2:] for cell in found), strict=True)] == [
        8192,
        8192,
        4196,
    ]
    files = [PlacedFile("a", 0, 4096), PlacedFile("b", 4096, 8192), PlacedFile("c", 8192, 8292)]
    assert files_read(view, files) == [FileUse("b", 4096, 4096), FileUse("c", 100, 100)]
    view.close()


def test_a_layer_that_nobody_has_opened_has_nothing(layer: Layer, tmp_path: Path) -> None:
    directory = layer.create(tmp_path / "layer")
    view = LayerView(directory)
    assert (view.local_bytes, view.trace, files_read(view, [])) == (0, [], [])
    assert {cell.kind for cell in cells(view, 3)} == {"missing"}
    view.close()
    with pytest.raises(NotFound):
        LayerView(tmp_path / "none")


def test_a_map_of_another_boot_counts_only_what_is_durable(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = layer.create(tmp_path / "layer")
    cache = layer.open(directory)
    cache.read(0, 10)
    cache.sync()
    cache.read(8192, 10)
    cache.close()
    monkeypatch.setattr("lamina.lazy.view.boot_id", lambda: "0" * 36)
    view = LayerView(directory)
    assert list(view.local) == [1, 0, 0, 0]
    view.close()


def test_svg_is_well_formed_and_escapes_names() -> None:
    evil = "<script>alert('x')</script>&\"\x01\x1b[31m\udcff"
    files = [PlacedFile(evil, 0, 50), PlacedFile("other", 50, 100)]
    found = [Cell(0, 60, 0, 0, 60), Cell(60, 100, 40, 0, 0)]
    text = draw(evil, [Strip(evil, found, files)])
    root = ET.fromstring(text.encode())
    assert root.tag == f"{SVG}svg"
    assert not list(root.iter(f"{SVG}script"))
    titles = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert "/<script>alert('x')</script>&\"\\x01\\x1b[31m\\udcff" in titles[1]
    assert "/other" in titles[1] and "/other" in titles[2]
    assert "script" not in titles[2]


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("/usr/bin/tool", ["usr/bin/tool"], ["usr/bin/tool2", "a/usr/bin/tool"]),
        ("usr/bin", ["usr/bin/tool", "usr/bin/a/b", "usr/bin"], ["usr/binary"]),
        ("usr/*/tool", ["usr/bin/tool"], ["usr/a/b/tool", "usr/tool"]),
        ("**/tool", ["tool", "usr/bin/tool", "tool/below"], ["usr/mytool"]),
        ("usr/**/tool", ["usr/tool", "usr/a/b/tool"], ["tool"]),
        ("etc/**", ["etc/a", "etc/a/b"], ["etc", "etcetera"]),
        ("lib?.so", ["libc.so"], ["lib.so", "lib/.so", "libcc.so"]),
        ("lib[a-c].so", ["libb.so"], ["libd.so"]),
        ("lib[!a-c].so", ["libd.so"], ["libb.so", "lib/.so"]),
        ("a[", ["a["], ["a"]),
        (r"a\*b", ["a*b"], ["axb"]),
        ("a.b", ["a.b"], ["axb"]),
        ("/", ["anything/at/all"], []),
        ("with space", ["with space"], ["with"]),
    ],
)
def test_patterns(pattern: str, matched: list[str], others: list[str]) -> None:
    [found] = read_patterns([pattern + "\n"])
    assert [path for path in matched + others if found.matches(path)] == matched


def test_lists_have_comments_and_an_order() -> None:
    patterns = read_patterns(["# first\n", "\n", "b*\r\n", "**/*.so\n", "  \n", "a\n"])
    assert [pattern.text for pattern in patterns] == ["b*", "**/*.so", "a"]
    assert in_order(patterns, ["a", "b.so", "c.so", "d"]) == [["b.so"], ["c.so"], ["a"]]
    with pytest.raises(InvalidArgument, match="line 2"):
        read_patterns(["a", "a/../b"])
    with pytest.raises(InvalidArgument, match=r"line 1: \[z-a\]"):
        read_patterns(["[z-a]"])


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"layer": 1, "ranges": []}', '{"layer": "a", "ranges": [[1]]}',
     '{"layer": "a", "ranges": [[1, "2"]]}', '{"layer": "a", "ranges": [[1, true]]}'],
)  # fmt: skip
def test_what_is_no_trace_is_refused_by_its_line(line: str) -> None:
    good = '{"layer": "a", "ranges": [[1, 2]]}'
    assert read_trace([good, "\n"], "file") == [{"layer": "a", "ranges": [[1, 2]]}]
    with pytest.raises(InvalidArgument, match="file, line 2"):
        read_trace([good, line], "file")


def test_a_trace_finds_its_units_again(layer: Layer, tmp_path: Path) -> None:
    directory = layer.create(tmp_path / "layer")
    cache = layer.open(directory)
    cache.read(12288, 100)
    cache.read(0, 100)
    view = LayerView(directory)
    ranges = list(source_ranges(view))
    assert units_in(view, ranges) == view.trace == [2, 0]
    assert units_in(view, [(0, 1 << 40)]) == list(range(len(view.table)))
    assert units_in(view, [(-5, 0), (1 << 40, 1 << 41), (9, 3)]) == []
    view.close()
    cache.close()
