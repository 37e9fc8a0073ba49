"""SmolLM2-135M on real databricks-dolly-15k rows."""
