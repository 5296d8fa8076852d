"""LoRA adapters on the real server: by name, and reloaded while it serves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.grpc_requests import Request, refusal, sampling
from tests.e2e.openai_port import client_of
from tests.e2e.tiny_models import TinyModels, deltas, document_lines, serve_chat

pytestmark = pytest.mark.timeout(300)
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", autouse=True)
def _chat(tiny: TinyModels) -> None:
    serve_chat(tiny)


def text(tiny: TinyModels, adapter: str | None, max_tokens: int = 12) -> str:
    """Return what the model says with an adapter."""
    chosen = {} if adapter is None else {"lora_name": adapter}
    response = tiny.ask(
        "chat",
        {
            "text_input": "Say something",
            "exclude_input_in_output": True,
            "sampling_parameters": sampling(**GREEDY, max_tokens=max_tokens, **chosen),
        },
    )
    assert not response.error, response.error
    return response.outputs["text_output"][0]


def write_adapters(path: Path, adapters: dict[str, Any] | str) -> None:
    """Replace multi_lora.json at one stroke, as an editor does."""
    content = adapters if isinstance(adapters, str) else json.dumps(adapters)
    new = path.with_suffix(".new")
    new.write_text(content)
    os.replace(new, path)  # noqa: PTH105


def test_an_adapter_changes_what_the_model_says(tiny: TinyModels) -> None:
    """Without an adapter and with each of two, the greedy text differs, and stays the same."""
    names = (None, "loud", "quiet")
    texts = [text(tiny, name) for name in names]
    assert 3 == len(set(texts)), texts
    assert texts == [text(tiny, name) for name in names]


def cached_and_ids(tiny: TinyModels, adapter: str | None) -> tuple[int, list[int]]:
    """Return how many tokens of a long prompt the prefix cache had, and the tokens that follow."""
    chosen = {} if adapter is None else {"lora_name": adapter}
    response = tiny.ask(
        "chat",
        {
            "text_input": "one two three " * 30,
            "return_num_cached_tokens": True,
            "return_output_ids": True,
            "sampling_parameters": sampling(**GREEDY, max_tokens=12, **chosen),
        },
    )
    assert not response.error, response.error
    (cached,) = response.outputs["num_cached_tokens"]
    return int(cached), [int(token) for token in response.outputs["output_ids"]]


def test_no_adapter_gets_the_prefix_cache_of_another(
    tiny: TinyModels, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Nor that of the weights that its folder held before, under the same name and path."""
    path = tiny.folder("chat") / "1/multi_lora.json"
    listed = json.loads(path.read_text())
    request.addfinalizer(lambda: write_adapters(path, listed))
    folder = shutil.copytree(listed["loud"], tmp_path / "same")
    write_adapters(path, {**listed, "same": str(folder)})
    said = {}
    for name in (None, "same", "quiet"):
        cold, first = cached_and_ids(tiny, name)
        warm, said[name] = cached_and_ids(tiny, name)
        assert (0, first) == (cold, said[name])
        assert 0 < warm
    assert 3 == len({tuple(tokens) for tokens in said.values()})
    shutil.copytree(listed["quiet"], folder, dirs_exist_ok=True)
    path.touch()
    assert (0, said["quiet"]) == cached_and_ids(tiny, "same")


def test_the_name_as_a_request_parameter(tiny: TinyModels) -> None:
    """lora_name counts among the request's own parameters, too."""
    status, body = tiny.server.post(
        "v2/models/chat/generate",
        {
            "text_input": "Say something",
            "exclude_input_in_output": True,
            "temperature": 0,
            "ignore_eos": True,
            "max_tokens": 12,
            "lora_name": "loud",
        },
    )
    assert 200 == status, body
    assert text(tiny, "loud") == json.loads(body)["text_output"]


def test_an_unknown_adapter_is_not_found(tiny: TinyModels) -> None:
    """An unknown name, such as a path, is answered NOT_FOUND with the names that there are."""
    for name in ("lowd", str(tiny.checkpoints / "adapters/loud")):
        status, message = refusal(tiny.server, {"text_input": "Hi"}, "chat", {"lora_name": name})
        assert "NOT_FOUND" == status
        assert f'lora_name: unknown adapter "{name}"' in message
        assert "available: loud, quiet, broken" in message


def test_half_of_a_surrogate_pair_is_no_name(tiny: TinyModels) -> None:
    """The error, which cannot quote it as it came, is told; nothing stays of the request."""
    inputs = {"text_input": "Hi", "sampling_parameters": r'{"lora_name": "\ud83d"}'}
    status, message = refusal(tiny.server, inputs, "chat")
    assert "INVALID_ARGUMENT" == status
    assert r'"lora_name": \ud83d is half of a surrogate pair' in message
    assert text(tiny, None)


def test_an_adapter_that_cannot_be_loaded(tiny: TinyModels) -> None:
    """It is answered so, and the engine lives."""
    status, message = refusal(tiny.server, {"text_input": "Hi"}, "chat", {"lora_name": "broken"})
    assert "UNAVAILABLE" == status
    assert 'adapter "broken" cannot be loaded' in message
    assert text(tiny, None)


def test_reloaded_while_a_request_runs(tiny: TinyModels) -> None:
    """A change of the file counts for the next request; the one under way ends as it began."""
    path = tiny.folder("chat") / "1/multi_lora.json"
    listed = json.loads(path.read_text())
    before, other = text(tiny, "loud", 400), text(tiny, "quiet")
    inputs = {
        "text_input": "Say something",
        "stream": True,
        "sampling_parameters": sampling(**GREEDY, max_tokens=400, lora_name="loud"),
    }
    try:
        with Request(tiny.server, inputs, model="chat") as running:
            first = running.next()
            write_adapters(path, {**listed, "loud": listed["quiet"], "new": listed["quiet"]})
            assert other == text(tiny, "loud")
            assert other == text(tiny, "new")
            responses = [first, *running.all(120)]
        assert before == "".join(deltas(responses, "text_output"))
        assert before != other
    finally:
        write_adapters(path, listed)
    assert before[:4] == text(tiny, "loud", 400)[:4]


def test_a_malformed_file_changes_nothing(tiny: TinyModels) -> None:
    """The adapters stay as they were, and the log says where the file is wrong."""
    path = tiny.folder("chat") / "1/multi_lora.json"
    listed, expected, since = path.read_text(), text(tiny, "loud"), tiny.server.log_size()
    try:
        write_adapters(path, '{"loud": ')
        assert expected == text(tiny, "loud")
        line = tiny.server.await_log("multi_lora.json: not JSON", since=since)
        assert "the adapters stay as they were" in line
    finally:
        write_adapters(path, listed)


def test_an_adapter_is_a_model_of_the_openai_port(tiny: TinyModels) -> None:
    """It is listed beside the model, and it answers as the adapter does over Triton's protocols."""
    asked: dict[str, Any] = {"prompt": "Say something", "max_tokens": 12, "extra_body": GREEDY}
    with client_of(tiny.openai_port) as client:
        assert {"chat", "adapter"} == {model.id for model in client.models.list()}
        texts = {
            name: client.completions.create(model=name, **asked).choices[0].text
            for name in ("chat", "adapter")
        }
    assert {"chat": text(tiny, None), "adapter": text(tiny, "loud")} == texts


@pytest.mark.parametrize(("name", "line"), document_lines("LORA"))
def test_a_line_of_the_document(tiny: TinyModels, name: str, line: str) -> None:
    """Each line gets an answer with a text, which may be empty."""
    assert "text_output" in tiny.run_line(line, "chat")
