"""Tests against a real Triton server."""
