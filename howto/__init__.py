"""What the stages know: prompts, rows, params, scores."""

from howto.portable import set_environment

set_environment()  # here, because it has no effect once NumPy is imported
