"""Data quality, freshness and service levels: facts against limits."""
