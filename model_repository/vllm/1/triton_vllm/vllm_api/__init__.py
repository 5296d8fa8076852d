"""The only package that imports vLLM: engine start, parameters, and what differs by version.

Importing one of its modules takes seconds, but for ``versions`` and ``preload``, so do it late.
"""
