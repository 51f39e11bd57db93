"""Numbers about logits and labels, below tables and pictures."""
