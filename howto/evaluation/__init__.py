"""Score answers, and compare two models on the same rows."""
