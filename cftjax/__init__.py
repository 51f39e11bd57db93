"""Category-wise Fine-Tuning of multi-label image classifiers trained with partial labels."""
