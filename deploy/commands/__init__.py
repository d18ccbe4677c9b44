"""The commands of ``driftline``, by what they talk to; each module imports what it runs only when it runs it."""
