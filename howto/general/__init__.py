"""What the fine-tuning may have cost: general text, plain chat questions, and what both models make of them."""
