"""What must not reach the engine, at the seam where vLLM has made its input of the media."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import wave
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.multimodal.audio import AudioResampler
from vllm.multimodal.inputs import PlaceholderRange
from vllm.utils.import_utils import PlaceholderModule

from triton_vllm.errors import MediaError, RequestError
from triton_vllm.vllm_api import api as vllm_api
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


def engine(renderer: Any, refusal: Exception | None = None) -> Any:
    """Return an engine of media, which refuses each request with ``refusal`` if there is one."""

    def process_inputs(request_id: str, prompt: Any, params: Any) -> Any:
        if refusal is not None:
            raise refusal
        return prompt

    return SimpleNamespace(
        renderer=renderer,
        model_config=SimpleNamespace(multimodal_config=1),
        input_processor=SimpleNamespace(process_inputs=process_inputs),
    )


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


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "awaited"])
class TestTheGuard:
    """Both of the renderer's ways to the engine pass it."""

    def test_what_has_its_place_passes(self, wait: bool) -> None:
        """Nothing of it is changed, and text passes as it is."""
        for engine_input in (
            {"mm_placeholders": {"image": [place(False, True), PlaceholderRange(2, 4)]}},
            {"prompt_token_ids": [1]},
        ):
            assert engine_input is process(engine_input, WITH_MEDIA, wait=wait)

    @pytest.mark.parametrize("encoder", [False, True])
    def test_an_item_without_a_token_is_refused(self, wait: bool, encoder: bool) -> None:
        """The engine would look for its features, and die of finding none."""
        made: Any = {"mm_placeholders": {"image": [place(True), place(False, False)]}}
        with pytest.raises(MediaError, match=r"^image\[1\]: the model's processor makes nothing"):
            process({"encoder_prompt": made} if encoder else made, WITH_MEDIA, wait=wait)

    @pytest.mark.parametrize(
        ("pixels", "passes"),
        [
            (torch.zeros(1, 3), True),
            (torch.zeros(0, 3), False),
            ([torch.zeros(0, 3), torch.zeros(1, 3)], True),
            ([torch.zeros(0, 3)], False),
        ],
    )
    def test_an_item_without_pixels_is_refused(self, wait: bool, pixels: Any, passes: bool) -> None:
        """Whatever place it has taken; what is no pixel may be empty, and what is cached is not."""
        item = {
            "pixel_values": SimpleNamespace(data=pixels),
            "sizes": SimpleNamespace(data=torch.zeros(0, dtype=torch.int64)),
        }
        made = {
            "mm_placeholders": {"image": [place(True), place(True)]},
            "mm_kwargs": {"image": [None, item]},
        }
        if passes:
            assert made is process(made, WITH_MEDIA, wait=wait)
        else:
            with pytest.raises(MediaError, match=r"^image\[1\]:"):
                process(made, WITH_MEDIA, wait=wait)

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


@pytest.mark.parametrize(
    ("refusal", "items", "cleared"),
    [(None, 1, False), (ValueError("too long"), 1, True), (ValueError("too long"), 0, False)],
)
def test_what_is_refused_later_is_forgotten(
    refusal: Exception | None, items: int, cleared: bool
) -> None:
    """To the cache of vLLM the engine would be a holder of it."""
    renderer = Renderer({})
    llm = engine(renderer, refusal)
    guard(llm)
    prompt = {"mm_placeholders": {"image": [place(True)] * items}}
    if refusal is None:
        assert prompt is llm.input_processor.process_inputs("r", prompt, None)
    else:
        with pytest.raises(ValueError, match="too long"):
            llm.input_processor.process_inputs("r", prompt, None)
    assert cleared == renderer.cleared


def test_an_openai_client_is_answered_that_it_is_its_mistake() -> None:
    """VLLM's OpenAI-compatible front end knows a ValueError as one, and Triton's side too."""
    respond = first(
        "vllm.entrypoints.serve.exception_handling.error_response",
        "vllm.entrypoints.serve.utils.error_response",
    ).create_error_response
    error = MediaError("image[0]: x")
    assert 400 == respond(error).error.code
    assert isinstance(vllm_api.explain(error), RequestError)


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
    """Nothing of vLLM's or of a model's code has to bear it."""
    audio = importlib.import_module("vllm.multimodal.media.audio")
    monkeypatch.setattr(audio, "load_audio", lambda *_, **__: (np.zeros(shape), 16_000))
    with pytest.raises(MediaError, match="it is empty"):
        asyncio.run(GuardedConnector().fetch_audio_async(wav(160)))
