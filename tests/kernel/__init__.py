"""Tests on the real kernel, most of them as root."""
