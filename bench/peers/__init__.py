"""The servers that are compared: how each is named, started, looked at and ended."""
