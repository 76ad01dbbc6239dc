"""Executes mounts that snapshotters hand out, and takes them down again."""
