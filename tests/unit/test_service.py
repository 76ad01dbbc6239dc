"""The snapshot service: messages, conversions, and what a client of it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lamina import errors
from lamina.api.call import Call, Method
from lamina.api.client import RemoteSnapshotter
from lamina.api.convert import info_from_wire, info_to_wire, mounts_from_wire, mounts_to_wire
from lamina.api.service import SERVICE, snapshots_methods
from lamina.api.status import from_status, to_status
from lamina.api.wire import snapshots_pb2 as pb
from lamina.core.cancel import CancelToken
from lamina.core.mount import Mount
from lamina.core.snapshot import EPOCH, Info, Kind, Snapshotter, Usage
from lamina.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    DigestMismatch,
    FormatError,
    InvalidArgument,
    LaminaError,
    NotFound,
    NotImplementedHere,
    SnapshotterSkipped,
    ToolError,
)
from lamina.snapshotters.engine import Engine
from lamina.testing.serving import served, served_methods
from tests.file_driver import FileDriver

NOW = datetime(2026, 2, 3, 4, 5, 6, 789012, UTC)
Ended = tuple[str, str, str, int]


class Service:
    """The methods themselves, called without a socket."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self.ended: list[Ended] = []
        self.token = CancelToken()
        self._snapshotter = snapshotter
        self._methods = snapshots_methods(self._lookup, self._observe)

    def _lookup(self, name: str) -> Snapshotter:
        if name != "model":
            raise InvalidArgument(f"snapshotter not loaded: {name}")
        return self._snapshotter

    def _observe(self, name: str, snapshotter: str, key: str, code: int, *_: object) -> None:
        self.ended.append((name, snapshotter, key, code))

    def call(self, name: str, request: bytes) -> list[bytes]:
        method = self._methods[f"/{SERVICE}/{name}"]
        call = Call({}, self.token)
        if method.stream is not None:
            return list(method.stream(request, call))
        assert method.unary is not None
        return [method.unary(request, call)]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine("model", FileDriver(tmp_path), tmp_path) as engine:
        yield engine


@pytest.fixture
def service(engine: Engine) -> Service:
    return Service(engine)


@pytest.fixture
def remote(engine: Engine) -> Iterator[RemoteSnapshotter]:
    with served(engine) as remote:
        yield remote


def test_paths_are_containerds(engine: Engine) -> None:
    methods = snapshots_methods(lambda name: engine, lambda *_: None)
    service = pb.DESCRIPTOR.services_by_name["Snapshots"]
    assert {f"/{service.full_name}/{m.name}" for m in service.methods} == set(methods)
    assert [path for path in methods if methods[path].stream] == [
        "/containerd.services.snapshots.v1.Snapshots/List"
    ]


def test_only_what_never_waits_runs_on_the_event_loop(engine: Engine, tmp_path: Path) -> None:
    class PromptDriver(FileDriver):
        mounts_at_once = True

    (tmp_path / "prompt").mkdir()
    with Engine("prompt", PromptDriver(tmp_path / "prompt"), tmp_path / "prompt") as prompt:
        known = {"model": engine, "prompt": prompt}

        def lookup(name: str) -> Snapshotter:
            if name not in known:
                raise InvalidArgument(f"snapshotter not loaded: {name}")
            return known[name]

        methods = snapshots_methods(lookup, lambda *_: None)
        inline = {
            (path.rpartition("/")[2], name)
            for path, method in methods.items()
            for name in ("model", "prompt", "nobody")
            if method.is_inline(pb.MountsRequest(snapshotter=name).SerializeToString())
        }
    everyone = {("Stat", name) for name in ("model", "prompt", "nobody")}
    assert inline == {*everyone, ("Mounts", "prompt"), ("Mounts", "nobody")}
    mounts = methods[f"/{SERVICE}/Mounts"]
    assert mounts.is_inline(b"\xff"), "the handler says what is wrong"


@pytest.mark.parametrize("kind", [Kind.ACTIVE, Kind.VIEW, Kind.COMMITTED])
def test_info_survives(kind: Kind) -> None:
    info = Info("k8s.io/1/a b", kind, "p", {"x/y.z": "1", "": "é"}, NOW, NOW + timedelta(days=9))
    assert info_from_wire(info_to_wire(info)) == info


def test_kinds_that_are_none_of_the_others_are_committed() -> None:
    assert info_to_wire(Info("a", Kind.UNKNOWN)).kind == pb.COMMITTED
    assert info_from_wire(pb.Info(name="a")).kind == Kind.COMMITTED
    assert info_from_wire(pb.Info.FromString(b"\x18\x63")).kind == Kind.COMMITTED


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (0, 0, EPOCH),
        (-62135596800, 0, datetime.min.replace(tzinfo=UTC)),
        (1, 1999, EPOCH + timedelta(seconds=1, microseconds=1)),
        (-1, 999999999, EPOCH - timedelta(microseconds=1)),
        (-(2**62), 0, datetime.min.replace(tzinfo=UTC)),
        (2**62, 0, datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_times(seconds: int, nanos: int, expected: datetime) -> None:
    message = pb.Info(created_at={"seconds": seconds, "nanos": nanos})
    assert info_from_wire(message).created == expected


def test_mounts_survive() -> None:
    mounts = [Mount("bind", "/a", "b/c", ("rbind", "ro", "ro")), Mount("overlay", "overlay")]
    assert mounts_from_wire(mounts_to_wire(mounts)) == mounts


@pytest.mark.parametrize(
    ("count", "messages"), [(0, []), (1, [1]), (100, [100]), (201, [100, 100, 1])]
)
def test_list_comes_in_messages_of_100(
    engine: Engine, service: Service, count: int, messages: list[int]
) -> None:
    for number in range(count):
        engine.prepare(f"{number:03}")
    request = pb.ListSnapshotsRequest(snapshotter="model").SerializeToString()
    responses = [pb.ListSnapshotsResponse.FromString(r) for r in service.call("List", request)]
    assert [len(response.info) for response in responses] == messages
    names = [info.name for response in responses for info in response.info]
    assert names == [f"{number:03}" for number in range(count)]


def test_list_stops_when_nobody_waits(engine: Engine, service: Service) -> None:
    engine.prepare("a")
    service.token.cancel()
    request = pb.ListSnapshotsRequest(snapshotter="model").SerializeToString()
    with pytest.raises(Cancelled):
        service.call("List", request)
    assert service.ended == [("List", "model", "", Cancelled.grpc_code)]


def test_filters(engine: Engine, remote: RemoteSnapshotter) -> None:
    engine.prepare("a", labels={"x": "1"})
    engine.view("b")
    assert [info.name for info in remote.walk(["kind==view", "labels.x==1"])] == ["a", "b"]
    assert [info.name for info in remote.walk(["kind==view,labels.x==1"])] == []
    with pytest.raises(InvalidArgument, match="parse filter"):
        list(remote.walk(["kind==="]))


def test_update_without_info_is_refused(service: Service) -> None:
    request = pb.UpdateSnapshotRequest(snapshotter="model", update_mask={"paths": ["labels"]})
    with pytest.raises(InvalidArgument, match="the request has no info"):
        service.call("Update", request.SerializeToString())


def test_update_without_mask_replaces_all_labels(engine: Engine, service: Service) -> None:
    engine.prepare("a", labels={"x": "1", "y": "2"})
    info = {"name": "a", "labels": {"z": "3"}}
    request = pb.UpdateSnapshotRequest(snapshotter="model", info=info)
    [response] = service.call("Update", request.SerializeToString())
    assert dict(pb.UpdateSnapshotResponse.FromString(response).info.labels) == {"z": "3"}
    assert engine.stat("a").labels == {"z": "3"}


@pytest.mark.parametrize("request_", [b"\xff", b"\x12\x05ab", b"\x12\x01\xff"])
def test_a_damaged_request_is_refused(service: Service, request_: bytes) -> None:
    for name in ("Stat", "Prepare", "List"):
        with pytest.raises(InvalidArgument, match="decode"):
            service.call(name, request_)


def test_unknown_fields_are_ignored(engine: Engine, service: Service) -> None:
    engine.prepare("a")
    request = pb.StatSnapshotRequest(snapshotter="model", key="a").SerializeToString()
    [response] = service.call("Stat", request + b"\xfa\x01\x03abc")
    assert pb.StatSnapshotResponse.FromString(response).info.name == "a"


def test_observer_is_told_of_every_call(service: Service) -> None:
    service.call(
        "Prepare", pb.PrepareSnapshotRequest(snapshotter="model", key="a").SerializeToString()
    )
    for name in ("model", "none"):
        with pytest.raises(LaminaError):
            service.call(
                "Stat", pb.StatSnapshotRequest(snapshotter=name, key="b").SerializeToString()
            )
    service.call("List", pb.ListSnapshotsRequest(snapshotter="model").SerializeToString())
    assert service.ended == [
        ("Prepare", "model", "a", 0),
        ("Stat", "model", "b", NotFound.grpc_code),
        ("Stat", "none", "b", InvalidArgument.grpc_code),
        ("List", "model", "", 0),
    ]


def test_remote_does_what_the_engine_does(engine: Engine, remote: RemoteSnapshotter) -> None:
    assert remote.prepare("a", labels={"x": "1"}) == engine.mounts("a") == remote.mounts("a")
    assert remote.stat("a") == engine.stat("a")
    assert remote.usage("a") == Usage(1, 5)
    remote.commit("base", "a", labels={"y": "2"})
    assert remote.usage("base") == engine.usage("base") == Usage(1, 10)
    assert remote.view("v", "base") == engine.mounts("v")
    assert list(remote.walk()) == list(engine.walk())
    remote.remove("v")
    remote.cleanup()
    assert not [row for row in engine.backlog() if row[0] == "free"]
    remote.close()
    assert remote.stat("base").labels == {"y": "2"}


class Failing(Engine):
    """Raises what it is told to."""

    error: BaseException = LaminaError("x")

    def stat(self, key: str) -> Info:
        raise self.error

    def cleanup(self) -> None:
        raise self.error


def _classes(base: type[LaminaError]) -> Iterator[type[LaminaError]]:
    """Yield the tree; what else is derived depends on the modules that are loaded by now."""
    yield base
    for each in base.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _classes(each)


def _example(kind: type[LaminaError]) -> LaminaError:
    examples: dict[type[LaminaError], LaminaError] = {
        errors.ConfigError: errors.ConfigError("/etc/x", ["one", "two"]),
        DigestMismatch: DigestMismatch("read", "blob", expected="sha256:1", got="sha256:2"),
        FormatError: FormatError("tar", 7, expected="a", got="b"),
        SnapshotterSkipped: SnapshotterSkipped("zfs", reason="no module", fix="modprobe zfs"),
        ToolError: ToolError(["mkfs"], 1, "no room"),
    }
    return examples.get(kind) or kind("do something", 'odd: "\u00e9\n%41', hint="try; again")


@pytest.mark.parametrize("kind", list(_classes(LaminaError)), ids=lambda kind: kind.__name__)
def test_errors_reach_the_client(tmp_path: Path, kind: type[LaminaError]) -> None:
    """As the class of their code, with the same words, the class last."""
    error = _example(kind)
    with Failing("model", FileDriver(tmp_path), tmp_path) as engine, served(engine) as remote:
        engine.error = error
        with pytest.raises(LaminaError) as caught:
            remote.stat("a")
    assert type(caught.value).grpc_code == error.grpc_code
    code, text = to_status(error)
    assert str(caught.value).startswith(text)
    assert error.what in text and str(error.subject) in text and error.hint in text
    if kind is LaminaError or LaminaError in kind.__bases__:
        assert type(caught.value) is kind
        assert str(caught.value) == text
        assert type(caught.value).grpc_code == code


def test_an_unexpected_error_is_internal(tmp_path: Path) -> None:
    with Failing("model", FileDriver(tmp_path), tmp_path) as engine, served(engine) as remote:
        engine.error = RuntimeError("secret")
        with pytest.raises(errors.Internal) as caught:
            remote.stat("a")
        assert "secret" not in str(caught.value)
        engine.error = NotImplementedHere("clean up")
        with pytest.raises(NotImplementedHere):
            remote.cleanup()


@pytest.mark.parametrize(
    ("code", "text", "kind", "shown"),
    [
        (
            5,
            "snapshot a does not exist: not found",
            NotFound,
            "snapshot a does not exist: not found",
        ),
        (6, 'snapshot "a": already exists', AlreadyExists, 'snapshot "a": already exists'),
        (
            4,
            "context deadline exceeded",
            DeadlineExceeded,
            "context deadline exceeded: deadline exceeded",
        ),
        (99, "who knows", LaminaError, "who knows: unknown"),
    ],
)
def test_texts_of_a_containerd(code: int, text: str, kind: type[LaminaError], shown: str) -> None:
    error = from_status(code, text)
    assert type(error) is kind
    assert str(error) == shown


def test_what_is_not_unicode_is_refused_here(remote: RemoteSnapshotter) -> None:
    with pytest.raises(InvalidArgument, match="not Unicode text"):
        remote.stat("a\udc80")
    with pytest.raises(InvalidArgument, match="not Unicode text"):
        remote.update(Info("a", labels={"x": "\udc80"}))
    with pytest.raises(InvalidArgument, match="not Unicode text"):
        list(remote.walk(["\udc80"]))


def test_namespace_is_sent() -> None:
    """Only where there is one: a daemon may not ask for it."""
    seen: list[str | None] = []

    def stat(data: bytes, call: Call) -> bytes:
        seen.append(call.metadata.get("containerd-namespace"))
        return pb.StatSnapshotResponse().SerializeToString()

    with served_methods({f"/{SERVICE}/Stat": Method(stat)}) as channel:
        RemoteSnapshotter(channel, "x", namespace="k8s.io").stat("a")
        RemoteSnapshotter(channel, "x").stat("a")
    assert seen == ["k8s.io", None]


def test_a_damaged_response_is_data_loss() -> None:
    methods = {f"/{SERVICE}/Stat": Method(lambda data, call: b"\xff")}
    with served_methods(methods) as channel, pytest.raises(DataLoss, match="decode the daemon's"):
        RemoteSnapshotter(channel, "x").stat("a")
