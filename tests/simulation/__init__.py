"""The streaming core under a seeded scheduler: an in-memory log, processes that die between any two effects, an oracle."""
