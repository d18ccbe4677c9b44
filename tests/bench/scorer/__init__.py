"""The scorer under measurement: what it reaches beside the same session without Kafka, and how fast it lets go."""
