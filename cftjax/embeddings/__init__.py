"""All that makes or reads embeddings."""
