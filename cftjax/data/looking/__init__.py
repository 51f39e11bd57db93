"""What `python -m cftjax.data` tells of a data set."""
