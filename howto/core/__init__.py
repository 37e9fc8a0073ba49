"""What every stage uses and that rarely changes."""
