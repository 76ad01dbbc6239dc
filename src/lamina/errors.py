"""The one error tree, with the gRPC status and the exit code of each class.

The classes directly below `LaminaError` are containerd's error classes under containerd's names
(`errdefs`), so what a driver raises reaches a containerd client as the same class.

    LaminaError                 UNKNOWN(2)               exit 1
    +- InvalidArgument          INVALID_ARGUMENT(3)      exit 2
    |  +- ConfigError                                    exit 2
    +- NotFound                 NOT_FOUND(5)             exit 3
    +- AlreadyExists            ALREADY_EXISTS(6)        exit 4
    +- PermissionDenied         PERMISSION_DENIED(7)     exit 5
    +- ResourceExhausted        RESOURCE_EXHAUSTED(8)    exit 6
    +- FailedPrecondition       FAILED_PRECONDITION(9)   exit 7
    |  +- DigestMismatch                                 exit 7
    |  +- SnapshotterSkipped                             exit 7
    +- Aborted                  ABORTED(10)              exit 8
    +- OutOfRange               OUT_OF_RANGE(11)         exit 9
    +- NotImplementedHere       UNIMPLEMENTED(12)        exit 10
    +- Internal                 INTERNAL(13)             exit 11
    |  +- ToolError                                      exit 11
    +- Unavailable              UNAVAILABLE(14)          exit 12
    +- DataLoss                 DATA_LOSS(15)            exit 13
    |  +- FormatError                                    exit 13
    +- Unauthenticated          UNAUTHENTICATED(16)      exit 14
    +- Cancelled                CANCELLED(1)             exit 15
    +- DeadlineExceeded         DEADLINE_EXCEEDED(4)     exit 16

The text is always `WHAT "SUBJECT": CLASS TEXT`, then `; HINT` where there is something to do.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import ClassVar


class LaminaError(Exception):
    """Root of the tree; raised itself only for what no class below describes.

    Attributes:
        what: what was tried, in the imperative or as a noun (`"remove snapshot"`).
        subject: what it was tried on (a key, a path, a reference); may be empty.
        hint: what the user can do about it; may be empty.
    """

    grpc_code: ClassVar[int] = 2
    exit_code: ClassVar[int] = 1
    class_text: ClassVar[str] = "unknown"

    def __init__(self, what: str, subject: object = "", *, hint: str = "") -> None:
        super().__init__(what, subject, hint)
        self.what = what
        self.subject = str(subject)
        self.hint = hint

    def __str__(self) -> str:
        text = f'{self.what} "{self.subject}"' if self.subject else self.what
        if self.class_text and not text.endswith(f": {self.class_text}"):
            text = f"{text}: {self.class_text}"
        return f"{text}; {self.hint}" if self.hint else text


class InvalidArgument(LaminaError):
    """The request can never succeed as it stands."""

    grpc_code = 3
    exit_code = 2
    class_text = "invalid argument"


class ConfigError(InvalidArgument):
    """A configuration file is wrong; `problems` has every fault found, each with file and key."""

    class_text = "invalid configuration"

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        super().__init__(f"config {path}: " + "; ".join(problems))
        self.problems = tuple(problems)


class NotFound(LaminaError):
    """The named thing does not exist."""

    grpc_code = 5
    exit_code = 3
    class_text = "not found"


class AlreadyExists(LaminaError):
    """The name is taken."""

    grpc_code = 6
    exit_code = 4
    class_text = "already exists"


class PermissionDenied(LaminaError):
    """The kernel or a registry refuses the caller."""

    grpc_code = 7
    exit_code = 5
    class_text = "permission denied"


class ResourceExhausted(LaminaError):
    """A disk, a quota or a limit given by the caller is used up."""

    grpc_code = 8
    exit_code = 6
    class_text = "resource exhausted"


class FailedPrecondition(LaminaError):
    """The object is not in the state that the operation needs."""

    grpc_code = 9
    exit_code = 7
    class_text = "failed precondition"


class DigestMismatch(FailedPrecondition):
    """Content is not what its digest says; attributes `expected` and `got`."""

    class_text = "digest mismatch"

    def __init__(self, what: str, subject: object, *, expected: str, got: str) -> None:
        super().__init__(f"{what} {subject}: expected {expected}, got {got}")
        self.expected = expected
        self.got = got


class SnapshotterSkipped(FailedPrecondition):
    """A snapshotter cannot work on this machine; `reason` and `fix` say why and what helps."""

    class_text = "skip plugin"

    def __init__(self, name: str, *, reason: str, fix: str = "") -> None:
        super().__init__(f"load snapshotter {name}: {reason}", hint=fix)
        self.name = name
        self.reason = reason
        self.fix = fix


class Aborted(LaminaError):
    """A concurrent operation won; trying again may succeed."""

    grpc_code = 10
    exit_code = 8
    class_text = "aborted"


class OutOfRange(LaminaError):
    """An offset or a count lies outside what the object has."""

    grpc_code = 11
    exit_code = 9
    class_text = "out of range"


class NotImplementedHere(LaminaError):
    """The snapshotter, or this version, lacks the operation (containerd's ErrNotImplemented)."""

    grpc_code = 12
    exit_code = 10
    class_text = "not implemented"


class Internal(LaminaError):
    """An invariant of Lamina's own is broken, or a helper program failed."""

    grpc_code = 13
    exit_code = 11
    class_text = "internal"


class ToolError(Internal):
    """An external program failed; attributes `argv`, `code` (negative: signal) and `stderr`."""

    class_text = ""

    def __init__(self, argv: Sequence[str], code: int, stderr: str, *, hint: str = "") -> None:
        ended = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        said = stderr.strip().splitlines()
        detail = f": {said[-1]}" if said else ""
        super().__init__(f"run {shlex.join(argv)}: {ended}{detail}", hint=hint)
        self.argv = tuple(argv)
        self.code = code
        self.stderr = stderr


class Unavailable(LaminaError):
    """A peer (registry, daemon) cannot be reached just now."""

    grpc_code = 14
    exit_code = 12
    class_text = "unavailable"


class DataLoss(LaminaError):
    """Stored or received data is damaged beyond use."""

    grpc_code = 15
    exit_code = 13
    class_text = "data loss"


class FormatError(DataLoss):
    """Bytes break their format's rules.

    Attributes:
        format: the format's name (`"tar"`, `"erofs"`).
        offset: byte offset in the stream or file at which it was seen.
        expected: what the format asks for there.
        got: what is there.
        source: the file that they are in, where it is known.
    """

    class_text = "damaged data"

    def __init__(
        self, format: str, offset: int, *, expected: str, got: str, source: object = ""
    ) -> None:
        what = f'{format} in "{source}"' if source else format
        super().__init__(f"read {what} at byte {offset}: expected {expected}, got {got}")
        self.format = format
        self.offset = offset
        self.expected = expected
        self.got = got
        self.source = str(source)


class Unauthenticated(LaminaError):
    """Credentials are missing or wrong."""

    grpc_code = 16
    exit_code = 14
    class_text = "unauthenticated"


class Cancelled(LaminaError):
    """The caller gave up."""

    grpc_code = 1
    exit_code = 15
    class_text = "cancelled"


class DeadlineExceeded(LaminaError):
    """The operation took longer than the caller allowed."""

    grpc_code = 4
    exit_code = 16
    class_text = "deadline exceeded"
