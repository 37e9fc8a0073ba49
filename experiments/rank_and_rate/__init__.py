"""How the rank of the adapter and the learning rate go together."""
