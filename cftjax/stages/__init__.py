"""The stages of a run that the commands share."""
