"""Triton's protocol: tensors become requests, deltas become responses. Imports no vLLM."""
