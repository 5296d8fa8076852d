"""The only package that imports vLLM: engine start, parameters, and what differs by version."""
