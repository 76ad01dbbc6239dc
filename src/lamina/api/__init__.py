"""gRPC both ways: a server for any snapshotter, and a client that is one.

The transport is Lamina's own, see `docs/internals/grpc.md`.
"""
