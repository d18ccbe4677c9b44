"""Harm itself, once labels are in: loss above promise, above the reference, above the stable version."""
