"""How does the engine live? Its plan, one run of it, its restarts, and what requests see of it."""
