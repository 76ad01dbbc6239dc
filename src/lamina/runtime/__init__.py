"""Containers: OCI specification, bundle, and the runc or crun that runs it."""
