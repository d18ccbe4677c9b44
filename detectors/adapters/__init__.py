"""Detectors of other libraries behind the one protocol; each is imported only when a configuration names it."""
