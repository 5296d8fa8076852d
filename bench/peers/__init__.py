"""The servers of a comparison: their names, their start, what they report, and their end."""
