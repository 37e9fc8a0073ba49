"""What the measures of the steps see that ROUGE-L does not."""
