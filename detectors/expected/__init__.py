"""Performance without labels: what the scores, or the inputs, lead one to expect."""
