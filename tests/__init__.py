"""Tests of Lamina; see CONTRIBUTING.md."""
