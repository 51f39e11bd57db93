"""What `cftjax data` tells of a data set."""
