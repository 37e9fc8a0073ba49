"""Studies: each a folder with its script and its results."""
