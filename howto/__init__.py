"""What the stages know: prompts, rows, params, scores."""

from howto.core.instruction_set import set_environment

set_environment()  # here, because it has no effect once NumPy is imported
