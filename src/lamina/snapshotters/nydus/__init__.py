"""The nydus snapshotter: Nydus images (RAFS 5 and 6) are mounted before they are fetched."""
