"""Category-wise fine-tuning on embeddings: search, polish, choose. Arrays in, arrays out."""
