"""What the sources share: files, tables, images, and one message for all that is wrong with them."""
