"""Bytes to records and back: no network, no root, any operating system."""
