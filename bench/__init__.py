"""Benchmarks beside the peers; `script/bench` runs them and prints a line for each figure."""
