"""Answer rows with a model."""
