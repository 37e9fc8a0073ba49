"""Studies: each a folder with the script that ran its DVC experiments, and what came of them."""
