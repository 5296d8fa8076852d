"""Make a conda channel of two packages, python and pip, from a Python that this machine has.

Used where no conda channel answers. The interpreter must be an ordinary relocatable build with a
shared libpython (pyenv, conda, uv, docker's python images); Debian's and Ubuntu's own Python is
patched to install elsewhere and does not serve. Needs patchelf on PATH. The environment needs a
glibc at least as new as this machine's.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Stands in the packages for the prefix of their Python; the installer puts its own there.
PLACEHOLDER = "/opt/conda-channel-of-this-machine"
SUBDIRS = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}
EPOCH_MS = 1_700_000_000_000  # one date for all files: the same Python gives the same packages
NOT_COPIED = ("test", "tests", "idlelib", "turtledemo", "site-packages", "__pycache__", "*.[ao]")
# Libraries behind standard modules (ssl, ctypes, sqlite3, ...) that another machine may lack.
BUNDLED = re.compile(
    r"lib(ffi|ssl|crypto|bz2|lzma|z|sqlite3|readline|tinfo|ncursesw|panelw|uuid|expat|gdbm"
    r"|gdbm_compat|nsl|tirpc|db|crypt)[-.]"
)
PIP_SCRIPT = """\
#!{python}
import sys
from pip._internal.cli.main import main
sys.exit(main())
"""
PROBE = """
import json, platform, sys, sysconfig
print(json.dumps({
    "version": platform.python_version(),
    "prefix": sys.base_prefix,
    "library": sysconfig.get_config_var("LDLIBRARY") or "",
    "ordinary": sysconfig.get_default_scheme() == "posix_prefix",
}))
"""


class NoInterpreterError(Exception):
    """No Python of this machine can be made into a channel."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A relocatable Python: its version (3.12.4) and the prefix that holds its bin and lib."""

    version: str
    prefix: Path

    @property
    def name(self) -> str:
        """The name of its executable and folders, such as python3.12."""
        return "python" + ".".join(self.version.split(".")[:2])


def probe(executable: Path) -> Interpreter | None:
    """Return what an executable is, or None where it does not run or cannot be copied."""
    command = [str(executable), "-I", "-c", PROBE]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        found = json.loads(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    interpreter = Interpreter(found["version"], Path(found["prefix"]).resolve())
    shared = (interpreter.prefix / "lib" / found["library"]).exists() and ".so" in found["library"]
    has_pip = any(bundled_pip(interpreter))
    return interpreter if found["ordinary"] and shared and has_pip else None


def bundled_pip(interpreter: Interpreter) -> list[Path]:
    """Return the wheels of pip that the interpreter carries for ensurepip."""
    folder = interpreter.prefix / "lib" / interpreter.name / "ensurepip/_bundled"
    return sorted(folder.glob("pip-*.whl"))


def find_interpreter(version: str) -> Interpreter:
    """Return a Python of this version (3.12, or exactly 3.12.4) from PATH, pyenv or uv."""
    name = "python" + ".".join(version.split(".")[:2])
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    candidates = [Path(folder) / name for folder in os.get_exec_path()]
    candidates += sorted(pyenv.glob(f"versions/*/bin/{name}"))
    candidates += sorted(home.glob(f".local/share/uv/python/*/bin/{name}"))
    for candidate in candidates:
        found = probe(candidate) if candidate.exists() else None
        if found and f"{found.version}.".startswith(f"{version}."):
            return found
    raise NoInterpreterError(
        f"this machine has no relocatable Python {version} with a shared libpython: "
        "install one (pyenv, uv), or give a --channel that answers"
    )


def copy_python(interpreter: Interpreter, stage: Path) -> None:
    """Copy executable, standard library, headers and libpython; no tests, no installed packages."""
    prefix, name = interpreter.prefix, interpreter.name
    (stage / "bin").mkdir(parents=True)
    shutil.copy2(prefix / "bin" / name, stage / "bin" / name)
    for link in ("python", "python3"):
        (stage / "bin" / link).symlink_to(name)
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    shutil.copytree(prefix / "lib" / name, stage / "lib" / name, ignore=ignore, symlinks=True)
    (stage / "lib" / name / "site-packages").mkdir()
    shutil.copytree(prefix / "include" / name, stage / "include" / name)
    for library in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy2(library, stage / "lib" / library.name, follow_symlinks=False)


def is_elf(path: Path) -> bool:
    """Tell whether a file is a program or library of Linux."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def bundle_libraries(stage: Path, name: str) -> None:
    """Copy the libraries that standard modules link and that are not in every Linux."""
    for module in (stage / "lib" / name / "lib-dynload").glob("*.so"):
        told = subprocess.run(["ldd", module], capture_output=True, text=True, check=False).stdout
        for library, path in re.findall(r"(\S+) => (/\S+)", told):
            target = stage / "lib" / library
            if BUNDLED.match(library) and not target.exists():
                shutil.copy2(path, target)


def make_relocatable(stage: Path) -> None:
    """Let every program and library find the others relative to itself, and drop debug symbols."""
    strip = shutil.which("strip")
    for path in sorted(stage.rglob("*")):
        if path.is_symlink() or not path.is_file() or not is_elf(path):
            continue
        path.chmod(0o755)
        if strip:
            subprocess.run([strip, "--strip-unneeded", path], check=True)
        origin = "$ORIGIN/" + os.path.relpath(stage / "lib", path.parent)
        subprocess.run(["patchelf", "--set-rpath", origin, path], check=True)


def replace_prefix(path: Path, prefix: bytes, new: Path | str) -> bool:
    """Replace the interpreter's old prefix in a text file; tell whether it was there."""
    content = path.read_bytes()
    if prefix not in content or b"\0" in content:
        return False
    path.write_bytes(content.replace(prefix, str(new).encode()))
    return True


def path_entry(path: Path, stage: Path, prefix: bytes) -> dict[str, Any]:
    """Return one file's record for paths.json, after the old prefix in a text is replaced."""
    entry: dict[str, Any] = {"_path": path.relative_to(stage).as_posix(), "path_type": "hardlink"}
    if path.is_symlink():
        return entry | {"path_type": "softlink"}
    if replace_prefix(path, prefix, PLACEHOLDER):
        entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return entry | {"sha256": digest, "size_in_bytes": len(content)}


def plain_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an archive's member independent of who made it, and when."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = EPOCH_MS // 1000
    return member


def write_package(stage: Path, prefix: Path, index: dict[str, Any], channel: Path) -> None:
    """Write the staged files as a conda package into the channel's folder of its subdir."""
    index = {"build_number": 0, "timestamp": EPOCH_MS} | index
    files = [p for p in sorted(stage.rglob("*")) if p.is_symlink() or p.is_file()]
    (stage / "info").mkdir(exist_ok=True)
    files = [p for p in files if stage / "info" not in p.parents]
    paths = [path_entry(p, stage, bytes(prefix)) for p in files]
    (stage / "info/index.json").write_text(json.dumps(index))
    (stage / "info/about.json").write_text("{}")
    (stage / "info/paths.json").write_text(json.dumps({"paths": paths, "paths_version": 1}))
    folder = channel / index["subdir"]
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{index['name']}-{index['version']}-{index['build']}.tar.bz2"
    with tarfile.open(archive, "w:bz2", compresslevel=1) as tar:
        for top in sorted(stage.iterdir()):
            tar.add(top, top.name, filter=plain_member)


def write_python(interpreter: Interpreter, channel: Path, subdir: str) -> None:
    """Package the interpreter as python, with no dependencies."""
    stage = channel / "stage-python"
    copy_python(interpreter, stage)
    bundle_libraries(stage, interpreter.name)
    make_relocatable(stage)
    index = {"name": "python", "version": interpreter.version, "build": "0_local", "depends": []}
    index |= {"subdir": subdir, "license": "PSF-2.0"}
    write_package(stage, interpreter.prefix, index, channel)
    shutil.rmtree(stage)


def write_pip(interpreter: Interpreter, channel: Path) -> None:
    """Package the pip that the interpreter carries as a noarch package."""
    wheel = bundled_pip(interpreter)[-1]
    stage = channel / "stage-pip"
    shutil.unpack_archive(wheel, stage / "site-packages", "zip")
    entry_points = [f"{name} = pip._internal.cli.main:main" for name in ("pip", "pip3")]
    noarch = {"type": "python", "entry_points": entry_points}
    (stage / "info").mkdir()
    (stage / "info/link.json").write_text(
        json.dumps({"noarch": noarch, "package_metadata_version": 1})
    )
    index = {"name": "pip", "version": wheel.name.split("-")[1], "build": "py_local"}
    index |= {"subdir": "noarch", "noarch": "python", "license": "MIT"}
    write_package(stage, interpreter.prefix, index | {"depends": ["python"]}, channel)
    shutil.rmtree(stage)


def write_repodata(channel: Path, subdir: str) -> None:
    """Write a subdir's index of its packages."""
    # By hand: py-rattler's index_fs crashed at exit in 5 of 27 runs.
    packages = {}
    for archive in sorted((channel / subdir).glob("*.tar.bz2")):
        with tarfile.open(archive) as tar:
            index = tar.extractfile("info/index.json")
            assert index, archive
            record = json.load(index)
        content = archive.read_bytes()
        digests = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha256")}
        packages[archive.name] = record | {"size": len(content)} | digests
    repodata = {"info": {"subdir": subdir}, "packages": packages, "packages.conda": {}}
    (channel / subdir / "repodata.json").write_text(json.dumps(repodata | {"repodata_version": 1}))


def place(version: str, prefix: Path) -> None:
    """Copy a Python of this version, with its pip, to the prefix where it stays."""
    interpreter = find_interpreter(version)
    copy_python(interpreter, prefix)
    bundle_libraries(prefix, interpreter.name)
    make_relocatable(prefix)
    for path in prefix.rglob("*"):
        if path.is_file() and not path.is_symlink():
            replace_prefix(path, bytes(interpreter.prefix), prefix)
    packages = prefix / "lib" / interpreter.name / "site-packages"
    shutil.unpack_archive(bundled_pip(interpreter)[-1], packages, "zip")
    for name in ("pip", "pip3"):
        script = prefix / "bin" / name
        script.write_text(PIP_SCRIPT.format(python=prefix / "bin" / interpreter.name))
        script.chmod(0o755)


def build(version: str, channel: Path) -> None:
    """Make the channel from a Python of this version; NoInterpreterError where there is none."""
    interpreter = find_interpreter(version)
    subdir = SUBDIRS[platform.machine()]
    write_python(interpreter, channel, subdir)
    write_pip(interpreter, channel)
    for folder in (subdir, "noarch"):
        write_repodata(channel, folder)
