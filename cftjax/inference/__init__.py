"""A finished run in use: images to probabilities, heatmaps, files, exported programs."""
