"""Several processes that share the work of a stage, on one host or several."""
