"""State plus input plus time gives state plus outputs: everything here is pure, no clock, no I/O."""
