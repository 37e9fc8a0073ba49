"""Fine-tune the base model with LoRA."""
