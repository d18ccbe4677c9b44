"""What the monitor costs, beside its peers on the same topic."""
