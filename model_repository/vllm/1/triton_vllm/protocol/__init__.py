"""What does a client say? Triton's tensors in, deltas and responses out. Imports no vLLM."""
