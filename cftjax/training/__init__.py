"""From images, or from embeddings of a frozen backbone, to a trained classifier."""
