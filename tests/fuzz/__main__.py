"""The command line: `python -m tests.fuzz TARGET CORPUS [options of libFuzzer]`."""

from __future__ import annotations

import hashlib
import importlib
import resource
import sys
from pathlib import Path

import atheris

_MEMORY = 1 << 30
_DEFAULTS = ("-timeout=10", "-max_len=65536")
_MODULES = {
    "footer": "estargz",
    "toc": "estargz",
    "blob": "estargz",
    "erofs": "erofs",
    "rafs5": "rafs",
    "rafs6": "rafs",
    "rafs-blob": "rafs",
    "zfile": "overlaybd",
    "lsmt": "overlaybd",
    "warp": "overlaybd",
    "gzip-index": "beside_overlaybd",
    "access-trace": "beside_overlaybd",
    "device": "beside_overlaybd",
    "table": "caches",
    "map": "caches",
    "record": "caches",
    "tar": "tar",
}


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in _MODULES:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(_MODULES)} CORPUS [-runs=N ...]")
    name, corpus = sys.argv[1], Path(sys.argv[2])
    with atheris.instrument_imports(include=["lamina"]):
        target = importlib.import_module(f"tests.fuzz.{_MODULES[name]}").TARGETS[name]
    if not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in target.seeds():
            target.run(seed)
            (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    artifacts = f"-artifact_prefix={corpus}-"
    options = [sys.argv[0], *_DEFAULTS, artifacts, *sys.argv[3:], str(corpus)]
    atheris.Setup(options, target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
