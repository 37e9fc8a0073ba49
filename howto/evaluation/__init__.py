"""Score answers and compare two models."""
