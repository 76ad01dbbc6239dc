"""Lamina over gRPC: the snapshot service that containerd calls, and a client of such services."""
