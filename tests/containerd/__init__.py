"""Tests beside Debian's containerd."""
