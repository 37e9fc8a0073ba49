"""The raw rows: files of every format, and what their columns mean."""
