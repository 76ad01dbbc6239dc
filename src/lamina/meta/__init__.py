"""Durable metadata in SQLite: what exists, in which state, and who holds on to it."""
