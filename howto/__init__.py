"""Fine-tune a chat model to write step-by-step instructions, and measure what that bought."""

from howto.core.instruction_set import set_environment

set_environment()  # before anything imports NumPy
