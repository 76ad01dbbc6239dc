"""Layers of images: apply a tar stream safely, and walk a difference back into one."""
