"""Models measured side by side: read from runs and files, ensembled, scored, told."""
