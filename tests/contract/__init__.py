"""What the unit tests' fakes promise, asked of the real vLLM.

They run with the execution environment's Python; scripts/test.sh shows how.
"""
