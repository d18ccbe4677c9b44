"""What the actors decide, without I/O and without a clock: every rule here is a function of its arguments."""
