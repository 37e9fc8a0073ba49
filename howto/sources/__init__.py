"""Fetch the base model and the raw rows: hub, installed packages, GGUF files, local files."""
