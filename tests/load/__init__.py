"""Programs that load a server for minutes or hours: no tests, started by scripts/."""
