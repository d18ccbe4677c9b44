"""The same for each segment, and the gaps between segments."""
