"""Tells what works on this machine, what does not and why, and what would mend it."""

from lamina.doctor.backends import Backend, best_of, examine_backends
from lamina.doctor.finding import Finding, Level
from lamina.doctor.machine import examine_machine
from lamina.doctor.place import examine_place
from lamina.doctor.settings import examine_containerd

__all__ = [
    "Backend",
    "Finding",
    "Level",
    "best_of",
    "examine_backends",
    "examine_containerd",
    "examine_machine",
    "examine_place",
]
