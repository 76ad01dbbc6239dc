"""Tests that need no root."""
