"""The servers that tests of this folder share, and which tests share one.

Modules in one group run on one worker of pytest-xdist (``-n 2``), one after the other as they are
listed, so what ends a server is last. A module that is not listed is a group by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.e2e import limited as limited_server
from tests.e2e import two_front_ends
from tests.e2e.drop_in import install_backend
from tests.e2e.echo_server import put_stub_in_place, python_for_stub
from tests.e2e.limited import Limited
from tests.e2e.model_folder import add_model, check_prerequisites
from tests.e2e.openai_port import KEY, NAME, Served, client_of, engine_args
from tests.e2e.otlp import TRACE_OPTIONS, Collector
from tests.e2e.processes import free_ports
from tests.e2e.tiny_models import MEDIA_PACKAGES, TinyModels, make
from tests.e2e.tiny_server import add_tiny_model
from tests.e2e.triton_server import TritonServer, running
from tests.e2e.two_front_ends import TwoFrontEnds

# The longest first, so that the two workers end at the same time. A module that uses a shared
# server must be in its group: the server ends with that, and a later module would get the one that
# ended.
GROUPS: dict[str, tuple[str, ...]] = {
    "smollm2": (
        "test_readme_commands",
        "test_requests_doc",
        "test_generate",
        "test_outputs",
        "test_parameters",
        "test_structured_outputs",
        "test_other_clients",
        "test_openai",
        "test_traces",
        "test_bench",
        "test_load_failures",
        "test_drop_in",
        "test_balancer_replicas",
        "test_shutdown",
    ),
    "tiny": (
        "test_tiny_chat",
        "test_tiny_lora",
        "test_tiny_media",
        "test_tiny_video",
        "test_tiny_audio",
        "test_tiny_pooling",
    ),
    "front_ends": (
        "test_structured_outputs_orders",
        "test_metrics",
        "test_openai_life",
        "test_front_ends",
    ),
    "engine_faults": ("test_engine_faults",),
    "crowds": (
        "test_reliability",
        "test_hostile_requests",
        "test_input_types",
        "test_end_under_load",
    ),
    "death": ("test_death",),
    "openai_rust": ("test_openai_rust",),
    "limits": ("test_limits", "test_idle_streams"),
    "both_protocols": ("test_end_of_both_protocols",),
    "parallel": ("test_parallel", "test_pipeline"),
    "no_model": (
        "test_client",
        "test_shared_streams",
        "test_connection_age",
        "test_security",
        "test_balancer",
    ),
}
_PLACES = {
    module: (group, number)
    for group, modules in GROUPS.items()
    for number, module in enumerate(modules)
}
_SERVERS = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the engines of each worker cores of their own: else vLLM binds all to the same one."""
    config.stash[_SERVERS] = ExitStack()
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is None:
        return
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) % len(cores) :: workers]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, own))
    os.environ["OMP_NUM_THREADS"] = str(len(own))


def _group(nodeid: str) -> str:
    module = Path(nodeid.partition("::")[0]).stem
    return _PLACES.get(module, (module, 0))[0]


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives a worker one group after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Schedule groups of modules: pytest-xdist 3.8 loses its own groups with pytest 9.2."""
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of this folder into the order of the groups."""
    order = list(GROUPS)

    def place(item: pytest.Item) -> tuple[int, str, int]:
        group, number = _PLACES.get(item.path.stem, (item.path.stem, 0))
        return (order.index(group) if group in GROUPS else len(order), group, number)

    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    items[:] = [item for item in items if item not in set(ours)] + sorted(ours, key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """End the servers of a group after its last test."""
    yield
    if nextitem is None or _group(nextitem.nodeid) != _group(item.nodeid):
        item.config.stash[_SERVERS].pop_all().close()


@pytest.fixture(scope="session")
def group_servers(request: pytest.FixtureRequest) -> ExitStack:
    """What ends with the group of the test that is running."""
    return request.config.stash[_SERVERS]


@pytest.fixture(scope="session")
def collector(group_servers: ExitStack) -> Collector:
    """A receiver of the traces of ``served``."""
    collector = group_servers.enter_context(Collector())
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    group_servers.callback(collector.shutdown)
    return collector


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, group_servers: ExitStack, collector: Collector
) -> Served:
    """SmolLM2 as the model `vllm`: both protocols, tools, traces, API keys.

    Its Triton can load folders made for Triton's own vLLM backend, too.
    """
    check_prerequisites()
    repository = tmp_path_factory.mktemp("model_repository")
    (port,) = free_ports(1)
    settings = {
        "port": port,
        "api_keys_env": "MODEL_API_KEYS",
        "served_model_name": [NAME, "smol"],
        "enable_prompt_tokens_details": True,
    }
    arguments = engine_args(
        settings,
        # Beside "serving", where they are for Triton's protocols too.
        enable_auto_tool_choice=True,
        tool_call_parser="hermes",
        otlp_traces_endpoint=collector.url,
    )
    add_model(repository, engine_args=arguments)
    backends = install_backend(tmp_path_factory.mktemp("triton"))
    options = (
        f"--backend-directory={backends}",
        *TRACE_OPTIONS,
        f"--trace-config=opentelemetry,url={collector.url}",
    )
    variables = {
        "MODEL_API_KEYS": f"sk-the-first {KEY}",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    server = running(repository, "smollm2", "vllm", options=options, variables=variables)
    triton = group_servers.enter_context(server)
    client = group_servers.enter_context(client_of(port, KEY))
    return Served(triton, port, client)


@pytest.fixture(scope="session")
def triton(served: Served) -> TritonServer:
    """A server that has loaded the model `vllm`; ended, with nothing left, after the tests."""
    return served.triton


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, group_servers: ExitStack) -> TwoFrontEnds:
    """Two front ends of one engine, with both protocols."""
    found = two_front_ends.start(tmp_path_factory.mktemp("two"))
    group_servers.callback(found.triton.kill)
    return found


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory, group_servers: ExitStack) -> Limited:
    """A server with low limits of everything."""
    found = limited_server.start(tmp_path_factory.mktemp("limits"))
    group_servers.callback(found.triton.kill)
    return found


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny models."""
    check_prerequisites()
    return make(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, group_servers: ExitStack, checkpoints: Path
) -> TinyModels:
    """A server without a model, to which the tests add tiny ones."""
    # For the process in which vLLM looks at a model's class: it does not see the model's folder.
    variables = {"PYTHONPATH": str(MEDIA_PACKAGES)}
    repository = tmp_path_factory.mktemp("model_repository")
    server = group_servers.enter_context(running(repository, "tiny", variables=variables))
    return TinyModels(server, checkpoints)


@pytest.fixture(scope="session")
def crowded(tmp_path_factory: pytest.TempPathFactory, group_servers: ExitStack) -> TritonServer:
    """A small batch, limits of all that wait, and a short drain: for crowds and nonsense."""
    serving = {
        "metrics_interval_seconds": 0.1,
        "max_concurrent_requests": 24,
        "max_queued_tokens": 5_000,
        "default_max_tokens": 16,
        "drain_timeout_seconds": 3,
    }
    repository = add_tiny_model(
        tmp_path_factory.mktemp("crowds"),
        serving,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        enable_prefix_caching=False,
    )
    server = TritonServer(repository, "crowds", "vllm")
    group_servers.callback(server.kill)
    return server


@pytest.fixture(scope="session")
def parallel(tmp_path_factory: pytest.TempPathFactory, group_servers: ExitStack) -> TritonServer:
    """A server without a model, for models of several workers on however few cores."""
    variables = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    server = TritonServer(tmp_path_factory.mktemp("parallel"), "parallel", variables=variables)
    group_servers.callback(server.kill)
    return server


@pytest.fixture(scope="session")
def stub_prefix() -> Path:
    """The prefix of the stub's Python, and the stub in its place."""
    put_stub_in_place()
    return python_for_stub()
