"""Render prompts with images, audio and video, and keep from the engine what it cannot bear."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.transformers_utils.processor import get_video_processor_cls_name

from triton_vllm.errors import MediaError, RequestError, ServingError, one_line
from triton_vllm.protocol.requests import Generation, GenerationRequest, MediaPrompt
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.fetch import (
    GuardedConnector,
    missing_package,
    request_budgets,
)


def guard(llm: Any) -> None:
    """Have every error of the model's own media processor be the client's, as a MediaError.

    vLLM would answer such an error as one of the server. Whatever way a prompt takes, its media are
    processed by one of these two methods of the renderer.
    """
    if llm.model_config.multimodal_config is None:
        return
    renderer = llm.renderer
    _resample_with_what_there_is(renderer)
    whole, whole_async = renderer.process_for_engine, renderer.process_for_engine_async

    def process_for_engine(prompt: Any, *args: Any, **options: Any) -> Any:
        with _explained(prompt):
            return whole(prompt, *args, **options)

    async def process_for_engine_async(prompt: Any, *args: Any, **options: Any) -> Any:
        with _explained(prompt):
            return await whole_async(prompt, *args, **options)

    renderer.process_for_engine = process_for_engine
    renderer.process_for_engine_async = process_for_engine_async


def _resample_with_what_there_is(renderer: Any) -> None:
    """Have PyAV resample where torchaudio, newer vLLM's choice, is missing: PyPI's needs CUDA."""
    resampler = renderer.get_mm_processor().info.data_parser.audio_resampler
    if resampler.method == "torchaudio" and importlib.util.find_spec("torchaudio") is None:
        resampler.method = "pyav"


def has_media(engine_input: Any) -> bool:
    """Return whether there are images, audio or video in vLLM's engine input."""
    return any(_items(engine_input))


def check_media(engine_input: Any) -> None:
    """Raise MediaError for the first item of which the model's processor has left nothing.

    vLLM's engine core ends with the first exception in a model's code, and with it every request;
    some models' code fails on an empty item.
    """
    for kind, place, taken, item in _items(engine_input):
        if taken.get_num_embeds() == 0 or _is_empty(item):
            raise MediaError(
                f"{kind}[{place}]: the model's processor makes nothing of it: it is too small, or "
                "the processor's options leave nothing"
            )


def _items(engine_input: Any) -> Iterator[tuple[str, int, Any, Any]]:
    """Yield what each item takes of the prompt, and what is made of it, None where cached."""
    given = engine_input if isinstance(engine_input, dict) else {}
    prompt = given.get("encoder_prompt", given)
    for kind, ranges in prompt.get("mm_placeholders", {}).items():
        items = prompt.get("mm_kwargs", {}).get(kind) or [None] * len(ranges)
        for place, (taken, item) in enumerate(zip(ranges, items, strict=True)):
            yield kind, place, taken, item


def _is_empty(item: Any) -> bool:
    """Return whether there are no pixels and no samples in it: nothing in its float tensors."""
    fields = [] if item is None else [field.data for field in item.values()]
    sizes = [data.numel() for data in _tensors(fields) if data.is_floating_point()]
    return bool(sizes) and not any(sizes)


def _tensors(data: Any) -> Iterator[torch.Tensor]:
    if isinstance(data, torch.Tensor):
        yield data
    elif isinstance(data, list | tuple):
        for each in data:
            yield from _tensors(each)


@contextlib.contextmanager
def _explained(prompt: Any) -> Iterator[None]:
    """Raise an error of the media in ``prompt`` as a MediaError; others as they are."""
    given = prompt.get("encoder_prompt", prompt)
    media = given.get("multi_modal_data") if isinstance(given, dict) else None
    try:
        yield
    except ServingError:
        raise
    except Exception as error:
        if not media:
            raise
        what = f"the model's processor does not take it: {_innermost(error)}"
        if isinstance(error, ImportError):
            what = missing_package(error)
        raise MediaError(f"{', '.join(media)}: {what}") from error


def _innermost(error: BaseException) -> str:
    """Return what was first wrong: vLLM's own line around it prints all that was given."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


async def render(
    llm: Any, prompt: MediaPrompt, request: GenerationRequest, lora: Any
) -> Generation:
    """Load the media, and turn them and the text into an engine input."""
    config = llm.model_config.multimodal_config
    if config is None:
        raise RequestError(f"{', '.join(prompt.media)}: this model takes text only")
    known = llm.renderer.get_mm_processor().info.supported_mm_limits
    for kind in prompt.media.keys() - known.keys():
        raise RequestError(f"{kind}: this model takes {', '.join(sorted(known))} only")
    connector = GuardedConnector(
        config.media_io_kwargs,
        allowed_media_domains=llm.model_config.allowed_media_domains,
        **request_budgets(),
    )
    # The model's own processor chooses the frames of a video.
    video = {"video_processor": get_video_processor_cls_name(llm.model_config)}
    options = {"video": video} if "video" in prompt.media else {}
    data = {
        kind: await asyncio.gather(
            *(
                _load(connector, kind, place, item, options.get(kind, {}))
                for place, item in enumerate(items)
            )
        )
        for kind, items in prompt.media.items()
    }
    given = {"prompt": prompt.text, "multi_modal_data": data}
    if request.options.cache_salt:
        given["cache_salt"] = request.options.cache_salt
    (engine_input,) = await llm.renderer.render_cmpl_async(
        [parse_model_prompt(llm.model_config, given)], llm.renderer.default_cmpl_tok_params
    )
    return vllm_text.generation(llm, engine_input, request, lora)


async def _load(
    connector: GuardedConnector, kind: str, place: int, item: str, options: dict[str, Any]
) -> Any:
    url = item if item[:5] == "data:" or "://" in item[:16] else f"data:;base64,{item.strip()}"
    fetch = getattr(connector, f"fetch_{kind}_async")
    try:
        return await fetch(url, **options)
    except RequestError as error:
        raise MediaError(f"{kind}[{place}]: {error}") from error
