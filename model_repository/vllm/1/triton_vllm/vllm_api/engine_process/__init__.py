"""What runs in the processes of vLLM's engine core, and what its fork server has to know."""
