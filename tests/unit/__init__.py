"""Tests of one module each, without Triton and without vLLM."""
