"""Single odd events, and their rate."""
