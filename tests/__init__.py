"""The tests: ``unit`` needs neither Triton nor vLLM, ``contract`` vLLM, ``e2e`` both."""
