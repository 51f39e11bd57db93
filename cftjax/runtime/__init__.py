"""Devices, hosts, checkpoints, files, bars and signals: what a program needs that knows no images and no metrics."""
