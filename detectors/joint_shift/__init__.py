"""Many columns at once: embeddings, broken dependence."""
