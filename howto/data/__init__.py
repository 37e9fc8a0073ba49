"""Prepare rows: read, clean, remove duplicates, split."""
