"""Benchmarks of detectors: what they cost, how fast they see a change, and how often they page where there is none."""
