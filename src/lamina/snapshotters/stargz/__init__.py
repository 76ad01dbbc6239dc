"""The stargz snapshotter: eStargz and zstd:chunked layers are mounted before they are fetched."""
