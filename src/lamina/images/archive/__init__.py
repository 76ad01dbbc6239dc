"""Images as archives: OCI layouts (directory or tar) and what `docker save` writes."""
