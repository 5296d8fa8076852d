"""What is exported to Triton's /metrics: vLLM's metrics and those of the front end."""
