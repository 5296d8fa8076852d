"""OpenAI's protocol on a port of its own: vLLM's app, behind this model's admission."""
