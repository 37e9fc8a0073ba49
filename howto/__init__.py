"""What the stages know: prompts, rows, params, scores."""
