"""From an image on disk to a batch on the device."""
