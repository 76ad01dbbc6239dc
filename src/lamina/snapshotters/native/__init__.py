"""The native snapshotter: each snapshot a full copy of its parent; works on any filesystem."""
