"""What must not reach the engine, at the seam where vLLM has made its input of the media."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import io
import wave
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.audio import AudioResampler
from vllm.multimodal.inputs import PlaceholderRange
from vllm.utils.import_utils import PlaceholderModule

from triton_vllm.errors import MediaError, RequestError
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.guard import GuardedLLM
from triton_vllm.vllm_api.render.fetch import GuardedConnector
from triton_vllm.vllm_api.render.media import guard
from triton_vllm.vllm_api.versions import first


class Renderer:
    """A renderer whose processing gives, or raises, ``what``."""

    def __init__(self, what: Any) -> None:
        self._what = what
        self.cleared = False
        self.resampler = AudioResampler()
        info = SimpleNamespace(data_parser=SimpleNamespace(audio_resampler=self.resampler))
        self.get_mm_processor = lambda: SimpleNamespace(info=info)

    def clear_mm_cache(self) -> None:
        self.cleared = True

    async def clear_mm_cache_async(self) -> None:
        self.cleared = True

    def process_for_engine(self, prompt: Any, arrival_time: float) -> Any:
        if isinstance(self._what, Exception):
            raise self._what
        return self._what

    async def process_for_engine_async(self, prompt: Any, arrival_time: float) -> Any:
        return Renderer.process_for_engine(self, prompt, arrival_time)


def engine(renderer: Any) -> Any:
    """Return an engine of media."""
    return SimpleNamespace(renderer=renderer, model_config=SimpleNamespace(multimodal_config=1))


def process(what: Any, prompt: Any, *, wait: bool) -> Any:
    """Have a guarded renderer process a prompt."""
    renderer = Renderer(what)
    guard(engine(renderer))
    if wait:
        return asyncio.run(renderer.process_for_engine_async(prompt, 0.0))
    return renderer.process_for_engine(prompt, 0.0)


def place(*is_embed: bool) -> PlaceholderRange:
    return PlaceholderRange(0, len(is_embed), torch.tensor(is_embed, dtype=torch.bool))


WITH_MEDIA = {"prompt": "x", "multi_modal_data": {"image": [1]}}


class Queue:
    """What the guarded engine adds requests to; refuses all of them where it is full."""

    def __init__(self, *, full: bool = False) -> None:
        self._full = full
        self.added: list[Any] = []

    async def add_request(self, request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> None:
        if self._full:
            raise ValueError("too long")
        self.added.append(prompt)


def add(monkeypatch: pytest.MonkeyPatch, made: Any, queue: Queue) -> bool:
    """Add what a processor has made to a guarded engine; return whether its cache was cleared."""
    renderer = Renderer(None)
    monkeypatch.setattr(vllm_api.AsyncLLM, "__del__", lambda self: None)
    monkeypatch.setattr(vllm_api.AsyncLLM, "add_request", staticmethod(queue.add_request))
    monkeypatch.setattr(GuardedLLM, "renderer", renderer, raising=False)
    llm = object.__new__(GuardedLLM)
    with contextlib.suppress(VLLMValidationError, ValueError):
        asyncio.run(llm.add_request("1", made, vllm_api.SamplingParams()))
    return renderer.cleared


def item(pixels: Any) -> Any:
    return {
        "pixel_values": SimpleNamespace(data=pixels),
        "sizes": SimpleNamespace(data=torch.zeros(0, dtype=torch.int64)),
    }


def placed(item: Any) -> Any:
    return {"mm_placeholders": {"image": [place(True)]}, "mm_kwargs": {"image": [item]}}


@pytest.mark.parametrize(
    ("made", "passes"),
    [
        ({"mm_placeholders": {"image": [place(False, True), PlaceholderRange(2, 4)]}}, True),
        ({"prompt_token_ids": [1]}, True),
        ("Hello", True),
        ({"mm_placeholders": {"image": [place(True), place(False, False)]}}, False),
        ({"encoder_prompt": {"mm_placeholders": {"image": [place(False)]}}}, False),
        (placed(None), True),
        (placed(item(torch.zeros(1, 3))), True),
        (placed(item([torch.zeros(0, 3), torch.zeros(1, 3)])), True),
        (placed(item(torch.zeros(0, 3))), False),
        (placed(item([torch.zeros(0, 3)])), False),
    ],
    ids=[
        "images",
        "token ids",
        "text",
        "no place",
        "no place in the encoder",
        "in the cache of vLLM",
        "pixels",
        "pixels in a part",
        "no pixels",
        "no pixels in any part",
    ],
)
def test_an_item_of_which_nothing_is_left_does_not_reach_the_engine(
    monkeypatch: pytest.MonkeyPatch, made: Any, passes: bool
) -> None:
    """It is the client's error; and vLLM's cache forgets it, as the engine never had it."""
    queue = Queue()
    assert (not passes) == add(monkeypatch, made, queue)
    assert ([made] if passes else []) == queue.added


@pytest.mark.parametrize("items", [0, 1])
def test_what_is_refused_later_is_forgotten(monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    """Else vLLM's cache would take the engine for a holder of it; text leaves the cache alone."""
    made = {"mm_placeholders": {"image": [place(True)] * items}}
    assert bool(items) == add(monkeypatch, made, Queue(full=True))


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "awaited"])
class TestErrorsOfAProcessor:
    """Both of the renderer's ways to the engine explain them."""

    def test_what_has_its_place_passes(self, wait: bool) -> None:
        """Nothing of it is changed."""
        made = {"mm_placeholders": {"image": [place(False, True)]}}
        assert made is process(made, WITH_MEDIA, wait=wait)

    @pytest.mark.parametrize("error", [KeyError("k"), RuntimeError("r"), ZeroDivisionError("z")])
    def test_what_a_processor_raises_is_the_clients(self, wait: bool, error: Exception) -> None:
        """In one line, the first cause; with text alone it stays what it was."""
        with pytest.raises(MediaError, match=f"image: the model's .*: {type(error).__name__}:"):
            process(error, WITH_MEDIA, wait=wait)
        with pytest.raises(type(error)) as raised:
            process(error, {"prompt_token_ids": [1]}, wait=wait)
        assert error is raised.value

    def test_a_missing_package_is_named(self, wait: bool) -> None:
        """So that the operator knows what to install."""
        error = ModuleNotFoundError("No module named 'soxr'", name="soxr")
        with pytest.raises(MediaError, match=r"image: this server's .* no package soxr"):
            process(error, WITH_MEDIA, wait=wait)


def test_an_openai_client_is_answered_that_it_is_its_mistake() -> None:
    """VLLM's OpenAI-compatible front end knows a ValueError as one, and Triton's side too."""
    respond = first(
        "vllm.entrypoints.serve.exception_handling.error_response",
        "vllm.entrypoints.serve.utils.error_response",
    ).create_error_response
    error = MediaError("image[0]: x")
    assert 400 == respond(error).error.code
    assert isinstance(vllm_api.to_serving_error(error), RequestError)


def test_pyav_resamples_where_torchaudio_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer vLLM's default is torchaudio, which an environment for the CPU lacks."""
    for spec, expected in ((None, {"pyav"}), (object(), {"pyav", "torchaudio"})):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        renderer = Renderer({})
        guard(engine(renderer))
        assert renderer.resampler.method in expected
        assert AudioResampler().method in ("pyav", "torchaudio")


def wav(samples: int) -> str:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(16_000)
        file.writeframes(b"\x80" * samples)
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_decoders_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without vLLM's extra for audio says what it lacks, and how to get it."""
    audio = importlib.import_module("vllm.multimodal.media.audio")
    for package in ("av", "soundfile"):
        monkeypatch.setattr(audio, package, PlaceholderModule(package))
        monkeypatch.setitem(importlib.import_module("sys").modules, package, None)
    with pytest.raises(MediaError, match=r"no package av, .* VLLM_EXTRAS=audio"):
        asyncio.run(GuardedConnector().fetch_audio_async(wav(160)))


@pytest.mark.parametrize("shape", [(0,), (1, 0)])
def test_sound_without_samples_is_refused(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """It reaches neither vLLM nor a model's code."""
    audio = importlib.import_module("vllm.multimodal.media.audio")
    monkeypatch.setattr(audio, "load_audio", lambda *_, **__: (np.zeros(shape), 16_000))
    with pytest.raises(MediaError, match="it is empty"):
        asyncio.run(GuardedConnector().fetch_audio_async(wav(160)))
