"""LoRA and other adapters: loading, merging, and computing them fast."""
