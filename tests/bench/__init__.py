"""Benchmarks: each prints one JSON line a figure, with its baseline from the same run on the same topic."""
