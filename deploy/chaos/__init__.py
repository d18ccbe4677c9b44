"""Breaks the running loop on purpose and holds what it computed against an exact offline computation."""
