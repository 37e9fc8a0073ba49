"""Commands for people; no stage imports this package."""
