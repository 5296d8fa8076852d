"""Who may enter, for how long, and with what? Admission, timeouts, drain, grammar compilation."""
