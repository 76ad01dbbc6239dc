"""The content store: writing, resuming, verifying, labels, power failures."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lamina.core.digest import Digest, sha256
from lamina.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DigestMismatch,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from lamina.images.content import ContentStore
from lamina.images.manifest import OCI_LAYER, Descriptor
from lamina.images.registry.cancel import Cancel
from lamina.meta.database import Database
from lamina.meta.schema import MIGRATIONS

DATA = bytes(range(256)) * 1000
BLOB = Descriptor(media_type=OCI_LAYER, digest=sha256(DATA), size=len(DATA))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "metadata.sqlite", MIGRATIONS)
    yield opened
    opened.close()


@pytest.fixture
def content(tmp_path: Path, database: Database) -> ContentStore:
    return ContentStore(tmp_path / "content", database)


def write(content: ContentStore, data: bytes = DATA) -> Digest:
    with content.open_writer("test") as writer:
        writer.write(data)
        return writer.commit()


def test_layout_is_containerds(content: ContentStore) -> None:
    digest = write(content)
    path = content.root / "blobs/sha256" / digest.removeprefix("sha256:")
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert content.path(digest) == path
    assert content.info(digest).size == len(DATA)
    assert list((content.root / "ingest").iterdir()) == []


def test_an_unfinished_blob_is_resumed(content: ContentStore) -> None:
    with content.open_writer("layer-1", expected=BLOB) as writer:
        writer.write(DATA[:1000])
    [ingest] = content.ingests()
    assert (ingest.ref, ingest.offset, ingest.total) == ("layer-1", 1000, len(DATA))
    with content.open_writer("layer-1", expected=BLOB) as writer:
        assert writer.resumed == writer.offset == 1000
        writer.write(memoryview(DATA)[1000:])
        assert writer.commit() == BLOB.digest


def test_after_a_reboot_nothing_is_resumed(tmp_path: Path, database: Database) -> None:
    before = ContentStore(tmp_path / "content", database, boot="one")
    with before.open_writer("layer-1", expected=BLOB) as writer:
        writer.write(DATA[:1000])
    after = ContentStore(tmp_path / "content", database, boot="two")
    with after.open_writer("layer-1", expected=BLOB) as writer:
        assert writer.offset == 0


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:-1] + b"x", b""])
def test_wrong_content_is_not_committed(content: ContentStore, data: bytes) -> None:
    with content.open_writer("layer-1", expected=BLOB) as writer:
        writer.write(data)
        with pytest.raises(DigestMismatch):
            writer.commit()
        writer.abort()
    assert not content.has(BLOB.digest)
    assert content.ingests() == []


def test_more_than_was_said_is_refused(content: ContentStore) -> None:
    with content.open_writer("layer-1", expected=BLOB) as writer:
        writer.write(DATA)
        with pytest.raises(DigestMismatch, match="size in bytes"):
            writer.write(b"x")


def test_what_is_there_is_not_written_again(content: ContentStore) -> None:
    write(content)
    with pytest.raises(AlreadyExists):
        content.open_writer("layer-1", expected=BLOB)
    content.put(DATA, BLOB)
    assert write(content) == BLOB.digest


def test_a_second_writer_waits_and_finds_the_blob(content: ContentStore) -> None:
    outcome: list[object] = []

    def second() -> None:
        try:
            outcome.append(content.open_writer("layer-1", expected=BLOB))
        except AlreadyExists as error:
            outcome.append(error)

    with content.open_writer("layer-1", expected=BLOB) as writer:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        writer.write(DATA)
        writer.commit()
    thread.join(5)
    assert isinstance(outcome[0], AlreadyExists)


def test_waiting_can_be_cancelled(content: ContentStore) -> None:
    cancel = Cancel()
    threading.Timer(0.1, cancel.set).start()
    with content.open_writer("layer-1", expected=BLOB), pytest.raises(Cancelled):
        content.open_writer("layer-1", expected=BLOB, cancel=cancel)


def test_writers_in_turn_while_ingests_are_swept(content: ContentStore) -> None:
    """Each makes its directory where the last one removed its own, and nobody takes it away."""
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            content.remove_ingests(set())

    def write_often() -> None:
        for _ in range(100):
            with content.open_writer("test") as writer:
                writer.write(DATA)
                writer.commit()

    with ThreadPoolExecutor() as pool:
        sweeping = pool.submit(sweep)
        writing = [pool.submit(write_often) for _ in range(3)]
        try:
            for each in writing:
                each.result()
        finally:
            done.set()
        sweeping.result()
    assert content.ingests() == []


def test_labels(content: ContentStore) -> None:
    digest = write(content)
    content.label(digest, {"a": "1", "b": "2"})
    assert content.label(digest, {"a": "", "c": "3"}).labels == {"b": "2", "c": "3"}
    assert [i.digest for i in content.walk(["labels.c==3"])] == [digest]
    assert list(content.walk(["labels.a"])) == []
    with pytest.raises(InvalidArgument, match="4096"):
        content.label(digest, {"x": "y" * 5000})
    with pytest.raises(NotFound):
        content.label(sha256(b"other"), {"a": "1"})


def test_delete(content: ContentStore) -> None:
    digest = write(content)
    content.delete(digest)
    assert not content.has(digest)
    assert list((content.root / "blobs/sha256").iterdir()) == []
    with pytest.raises(NotFound):
        content.delete(digest)


def test_a_lost_file_is_not_there(content: ContentStore) -> None:
    digest = write(content)
    content.label(digest, {"a": "1"})
    content.path(digest).unlink()
    assert not content.has(digest)
    assert list(content.walk()) == []
    write(content)
    assert content.info(digest).labels == {"a": "1"}


def test_changed_content_is_not_read(content: ContentStore) -> None:
    digest = write(content, b"small")
    path = content.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"SMALL")
    with pytest.raises(DataLoss, match="content rm"):
        content.read(digest)


@pytest.mark.parametrize("survived", [True, False])
def test_power_failure(tmp_path: Path, database: Database, survived: bool) -> None:
    digest = write(ContentStore(tmp_path / "content", database, boot="one"))
    after = ContentStore(tmp_path / "content", database, boot="two")
    path = tmp_path / "content/blobs/sha256" / digest.removeprefix("sha256:")
    if not survived:
        path.chmod(0o600)
        path.write_bytes(bytes(len(DATA)))
    assert after.has(digest) is survived
    assert path.exists() is survived


def test_synced_content_is_not_hashed_again(tmp_path: Path, database: Database) -> None:
    before = ContentStore(tmp_path / "content", database, boot="one")
    digest = write(before)
    before.sync()
    path = before.path(digest)
    path.chmod(0o600)
    path.write_bytes(bytes(len(DATA)))
    assert ContentStore(tmp_path / "content", database, boot="two").has(digest)


def test_space_is_asked_for(content: ContentStore) -> None:
    content.require_space(1)
    with pytest.raises(ResourceExhausted, match=r"1\.0 PiB"):
        content.require_space(1 << 50)
