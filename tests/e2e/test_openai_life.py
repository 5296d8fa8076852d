"""The OpenAI-compatible port of two front ends, beside other models' ports.

The tests run in the order of this file.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.openai_port import PERIOD, client_of, complete_some, eventually, is_open, metric
from tests.e2e.two_front_ends import FRONT_ENDS, TwoFrontEnds
from tests.tiny_llama import HIDDEN

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def served(two: TwoFrontEnds) -> TwoFrontEnds:
    """The server of the group."""
    return two


def ok(served: TwoFrontEnds, front_end: int) -> float:
    """Return how many requests a front end has served well."""
    return metric(
        served.triton,
        "triton_vllm:requests_total",
        outcome="ok",
        front_end=str(front_end),
        model="vllm",
    )


def test_every_front_end_serves_the_port(served: TwoFrontEnds) -> None:
    """Connections are spread over them, and all requests are counted."""
    before = [ok(served, n) for n in range(FRONT_ENDS)]
    assert [2] * 32 == complete_some(served.port, 32)

    def counted() -> list[float]:
        return [ok(served, n) - before[n] for n in range(FRONT_ENDS)]

    eventually(lambda: sum(counted()) == 32, "32 requests count")
    assert all(count > 0 for count in counted())


DEVELOPERS = [
    *("sleep", "wake_up", "reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"),
    *("collective_rpc", "release_kv_cache_memory", "start_profile", "stop_profile"),
    *("v1/load_lora_adapter", "v1/unload_lora_adapter", "pause", "resume", "update_weights"),
    *("scale_elastic_ep", "is_scaling_elastic_ep"),
]


def test_no_route_administers(served: TwoFrontEnds) -> None:
    """What vLLM has for developers and operators is not there, unless its variables are set."""
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client:
        statuses = {path: client.post(path, json={}).status_code for path in DEVELOPERS}
    assert dict.fromkeys(DEVELOPERS, 404) == statuses
    assert [2] == complete_some(served.port, 1)


def test_a_port_in_use_fails_the_load(served: TwoFrontEnds) -> None:
    """With one line, and before vLLM loads anything."""
    begin = served.triton.log_size()
    error = served.triton.load("thief")
    assert f'"serving.openai": 127.0.0.1:{served.port}: Address already in use' in error
    log = served.triton.log.read_bytes()[begin:].decode(errors="replace")
    assert "thief: configuration of" not in log
    assert [2] == complete_some(served.port, 1)


def test_two_models_have_two_ports(served: TwoFrontEnds) -> None:
    """A pooling model beside the first one: TLS, a key from a file, embeddings."""
    assert "" == served.triton.load("embed")
    trust = ssl.create_default_context(cafile=str(served.certificate))
    how: dict[str, Any] = {"base_url": f"https://127.0.0.1:{served.embed_port}/v1"}
    how |= {"http_client": openai.DefaultHttpxClient(verify=trust), "max_retries": 0}
    with openai.OpenAI(api_key="sk-of-the-file", **how) as client:
        one, two = client.embeddings.create(model="embed", input=["a cat", "a dog"]).data
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-of-somebody").models.list()
    assert (HIDDEN, HIDDEN) == (len(one.embedding), len(two.embedding))
    assert one.embedding != two.embedding
    assert pytest.approx(1.0, abs=1e-2) == sum(x * x for x in one.embedding)
    with client_of(served.port) as client:
        assert ["tiny"] == [model.id for model in client.models.list()]


def test_a_prefix_opens_and_closes_nothing(served: TwoFrontEnds) -> None:
    """What needs no key needs none behind the prefix; what nobody may use is not there."""
    trust = ssl.create_default_context(cafile=str(served.certificate))
    key = {"Authorization": "Bearer sk-of-the-file"}
    url = f"https://127.0.0.1:{served.embed_port}"
    with httpx.Client(base_url=url, verify=trust, timeout=60) as client:
        for prefix in ("", "/llm"):
            open_to_all = [client.get(f"{prefix}/{path}") for path in ("health", "version")]
            assert [200, 200] == [answer.status_code for answer in open_to_all]
            assert 401 == client.get(f"{prefix}/v1/models").status_code
            assert 200 == client.get(f"{prefix}/v1/models", headers=key).status_code
            closed = [client.post(f"{prefix}/{path}", headers=key, json={}) for path in DEVELOPERS]
            assert [404] * len(DEVELOPERS) == [answer.status_code for answer in closed]


def test_a_model_can_turn_its_metrics_off(served: TwoFrontEnds) -> None:
    """With REPORT_CUSTOM_METRICS "false" a model that has answered has no metric of its own."""
    time.sleep(2 * PERIOD)
    names = {
        sample.name
        for family in text_string_to_metric_families(served.triton.metrics())
        for sample in family.samples
        if sample.labels.get("model") == "embed"
    }
    assert names
    assert set() == {name for name in names if "vllm:" in name}


def test_an_unload_frees_one_port(served: TwoFrontEnds) -> None:
    """The other model's port stays open."""
    served.triton.unload("embed")
    eventually(lambda: not is_open(served.embed_port), "the port is freed")
    served.triton.await_state("embed", "UNAVAILABLE", 90)
    assert [2] == complete_some(served.port, 1)
