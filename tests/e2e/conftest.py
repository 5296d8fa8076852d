"""The servers, and the Python of the echo model's, that tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.drop_in import install_backend
from tests.e2e.echo_server import put_stub_in_place, python_for_stub
from tests.e2e.tiny_models import MEDIA_PACKAGES, TinyModels, make
from tests.e2e.triton_server import TritonServer, add_model, check_prerequisites, running


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that has loaded the model `vllm`; ended, with nothing left, after the tests.

    It can load folders made for Triton's own vLLM backend, too.
    """
    check_prerequisites()
    repository = tmp_path_factory.mktemp("model_repository")
    add_model(repository)
    backends = install_backend(tmp_path_factory.mktemp("triton"))
    options = (f"--backend-directory={backends}",)
    with running(repository, "shared", "vllm", options=options) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyModels]:
    """A server without a model, to which the tests add tiny ones."""
    check_prerequisites()
    checkpoints = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make(checkpoints)
    # For the process in which vLLM looks at a model's class: it does not see the model's folder.
    variables = {"PYTHONPATH": str(MEDIA_PACKAGES)}
    repository = tmp_path_factory.mktemp("model_repository")
    with running(repository, "tiny", variables=variables) as server:
        yield TinyModels(server, checkpoints)


@pytest.fixture(scope="session")
def stub_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of the stub's Python, and the stub in its place."""
    put_stub_in_place()
    return python_for_stub(tmp_path_factory.mktemp("stub_python"))
