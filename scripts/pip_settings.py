"""Print the settings of pip that say where packages come from, as uv's environment variables.

    python pip_settings.py [PYTHON]

PYTHON is the interpreter whose pip is asked for its settings (default: this one); where it has no
pip, the variables PIP_... alone count. One NAME=VALUE a line. A variable of uv's that is already
set is left alone.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping

# In the order in which a later one overrides an earlier one, as in pip.
SECTIONS = ("global", "install", ":env:")
# pip's settings of one value, and uv's variables for the same.
PLAIN = {
    "index-url": "UV_DEFAULT_INDEX",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
}
# Those of several values, which pip separates by white space; with uv's separator.
LISTS = {
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
}
# uv's older names of the same variables.
OLDER_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
# uv gives up after 30 s without data; a large wheel through a slow mirror takes pip's patience.
DEFAULT_TIMEOUT_SECONDS = "120"


def parse_listing(listing: str) -> dict[str, str]:
    """Return the settings of a `pip config list` by name; later sections override earlier ones."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        if match := re.fullmatch(r"(:env:|\w+)\.([\w-]+)=(['\"].*['\"])", line):
            section, name, value = match.groups()
            found.get(section, {})[name] = str(ast.literal_eval(value))
    return {name: value for section in SECTIONS for name, value in found[section].items()}


def pip_settings(python: str) -> dict[str, str]:
    """Return pip's settings by name, such as index-url."""
    command = [python, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return parse_listing(listed.stdout)
    variables = os.environ.items()
    return {
        name[4:].lower().replace("_", "-"): value
        for name, value in variables
        if name.startswith("PIP_") and value
    }


def uv_variables(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return uv's variables for pip's settings, without those that the environment has."""
    # As pip does: the best version of all indexes, not that of the first index which has one.
    wanted = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_HTTP_TIMEOUT": DEFAULT_TIMEOUT_SECONDS}
    wanted |= {uv: settings[name] for name, uv in PLAIN.items() if settings.get(name)}
    for name, (uv, separator) in LISTS.items():
        if values := settings.get(name, "").split():
            wanted[uv] = separator.join(values)
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        wanted["UV_NO_INDEX"] = "1"
    taken = {uv for uv, older in OLDER_NAMES.items() if environment.get(older)}
    taken |= {uv for uv in wanted if environment.get(uv)}
    return {uv: value for uv, value in wanted.items() if uv not in taken}


def main() -> None:
    """Print uv's variables for the settings of a Python's pip."""
    settings = pip_settings(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
    for name, value in uv_variables(settings, os.environ).items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
