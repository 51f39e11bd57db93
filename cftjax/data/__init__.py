"""From the files that people have to records of images and labels."""
