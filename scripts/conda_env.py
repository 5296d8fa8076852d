"""Create a conda environment of Python and pip, with conda if it is there, else py-rattler.

Used by gen_vllm_env.sh. The channel is a URL, a name, `local` (made by conda_channel.py from a
Python of this machine) or `auto`: conda-forge where it answers, else local.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import conda_channel

CONDA_FORGE = "conda-forge"
LOCAL = "local"
PROBE_SECONDS = 5.0
# Sourced by Triton's Python backend before release 25.08; its presence is asked for by all.
ACTIVATE = """\
CONDA_PREFIX="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
export CONDA_PREFIX PATH="$CONDA_PREFIX/bin:$PATH"
"""
COMMANDS = ("micromamba", "mamba", "conda")


def conda_forge_answers() -> bool:
    """Return whether conda-forge sends its smaller index within PROBE_SECONDS."""
    from rattler import Channel

    index = f"{Channel(CONDA_FORGE).base_url.rstrip('/')}/noarch/repodata.json.zst"
    try:
        with urllib.request.urlopen(index, timeout=PROBE_SECONDS):  # noqa: S310  the scheme is https
            return True
    except OSError:
        return False


def choose_channel(channel: str) -> str:
    """Turn `auto` into conda-forge where that answers, else into `local`."""
    if channel != "auto":
        return channel
    if conda_forge_answers():
        return CONDA_FORGE
    print("gen_vllm_env: conda-forge does not answer: taking a Python of this machine", flush=True)
    return LOCAL


def resolve_channel(channel: str, python: str, scratch: Path) -> str:
    """Turn `auto` and `local` into a channel's URL, making the local channel if it is needed."""
    if (chosen := choose_channel(channel)) != LOCAL:
        return chosen
    conda_channel.build(python, scratch / "channel")
    return (scratch / "channel").as_uri()


def conda_command() -> str | None:
    """Return the first of micromamba, mamba and conda on PATH."""
    return next((found for name in COMMANDS if (found := shutil.which(name))), None)


async def install_with_rattler(prefix: Path, channel: str, specs: list[str], cache: Path) -> None:
    """Solve and install the specs into prefix; cache must live until the environment is packed."""
    from rattler import Gateway, VirtualPackage, install, solve

    records = await solve(
        [channel],
        specs,
        gateway=Gateway(cache_dir=cache / "repodata"),
        virtual_packages=VirtualPackage.detect(),
    )
    await install(records, prefix, cache_dir=cache / "packages", show_progress=sys.stderr.isatty())


def create(prefix: Path, channel: str, python: str, cache: Path) -> None:
    """Create the environment; any failure of conda or py-rattler is raised as it came."""
    specs = [f"python={python}", "pip"]
    if command := conda_command():
        where = ["--prefix", str(prefix), "--override-channels", "--channel", channel]
        subprocess.run([command, "create", "--yes", "--quiet", *where, *specs], check=True)
    else:
        asyncio.run(install_with_rattler(prefix, channel, specs, cache))


def fail(sentence: str) -> int:
    """Print what failed and what to do; return the exit status."""
    print(f"gen_vllm_env: error: {sentence}", file=sys.stderr)
    return 1


def main() -> int:
    """Parse the command line and create the environment; return 1, after an error, on failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prefix", type=Path)
    parser.add_argument("--channel", required=True)
    parser.add_argument("--python", required=True, help="a version, such as 3.12 or 3.12.4")
    parser.add_argument("--scratch", required=True, type=Path, help="for the channel and the cache")
    parser.add_argument("--in-place", action="store_true", help="it will not be packed")
    flags = parser.parse_args()
    channel = flags.channel
    try:
        channel = choose_channel(flags.channel)
        if flags.in_place and channel == LOCAL:
            conda_channel.place(flags.python, flags.prefix)
        else:
            channel = resolve_channel(channel, flags.python, flags.scratch)
            create(flags.prefix, channel, flags.python, flags.scratch / "cache")
        if flags.in_place:
            (flags.prefix / "bin/activate").write_text(ACTIVATE)
    except conda_channel.NoInterpreterError as error:
        return fail(str(error))
    except Exception as error:  # py-rattler's errors share no base class
        what = f"no environment of Python {flags.python} from {channel} ({error})"
        return fail(f"{what}: give a --channel that has it, or --channel local")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # py-rattler can crash while the interpreter shuts down
