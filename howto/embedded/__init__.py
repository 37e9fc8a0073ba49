"""The embedded world: a corpus and a base model that the project makes from a seed."""
