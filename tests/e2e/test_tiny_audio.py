"""Sound on the real server: what is heard, in which forms, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.grpc_requests import sampling
from tests.e2e.tiny_models import TinyModels, document_lines, serve_audio
from tests.pictures import png, site

pytestmark = pytest.mark.timeout(300)
PLACE = "<|audio_bos|><|AUDIO|><|audio_eos|>"
ONE = f"{PLACE}What?"
TOKENS_A_SECOND = 25
GREEDY = sampling(temperature=0, max_tokens=8, ignore_eos=True)


def wav(seconds: float, rate: int = 16_000) -> bytes:
    """Return silence of 8 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate)
        file.writeframes(b"\x80" * int(seconds * rate))
    return buffer.getvalue()


def encoded(sound: bytes) -> str:
    return base64.b64encode(sound).decode()


@pytest.fixture(scope="module", autouse=True)
def _audio(tiny: TinyModels) -> None:
    serve_audio(tiny)


@pytest.fixture(scope="module")
def sounds(tiny: TinyModels) -> Iterator[int]:
    """The port of a server of audio clips on the loopback interface."""
    with site({"low.wav": tiny.clip("low.wav"), "text": b"no sound"}) as port:
        yield port


def hear(tiny: TinyModels, prompt: str, *items: bytes | str) -> tuple[str, int]:
    """Return the model's answer to audio clips, and the number of tokens in the prompt."""
    return tiny.perceive("audio", prompt, GREEDY, audio=list(items))


def test_the_model_hears_the_sounds(tiny: TinyModels) -> None:
    """Each audio clip takes its tokens in the prompt, and its pitch changes the answer."""
    low, one = hear(tiny, ONE, tiny.clip("low.wav"))
    high, _ = hear(tiny, ONE, tiny.clip("high.wav"))
    both, two = hear(tiny, PLACE + ONE, tiny.clip("low.wav"), tiny.clip("high.wav"))
    swapped, _ = hear(tiny, PLACE + ONE, tiny.clip("high.wav"), tiny.clip("low.wav"))
    assert len("What?") + 2 + TOKENS_A_SECOND == one
    assert 2 + TOKENS_A_SECOND == two - one
    assert low != high
    assert both != swapped
    assert (low, one) == hear(tiny, ONE, tiny.clip("low.wav"))


def test_length_is_paid_for(tiny: TinyModels) -> None:
    """Ten seconds take ten times the tokens of one, at any rate."""
    for rate in (8_000, 16_000, 48_000):
        _, tokens = hear(tiny, ONE, wav(10, rate))
        assert len("What?") + 2 + 10 * TOKENS_A_SECOND == tokens


@pytest.mark.parametrize("name", ["high.flac", "high.m4a"])
def test_other_formats(tiny: TinyModels, name: str) -> None:
    """Another container, codec and rate is heard, too."""
    heard, tokens = hear(tiny, ONE, tiny.clip(name))
    low, expected = hear(tiny, ONE, tiny.clip("low.wav"))
    assert abs(tokens - expected) <= 1  # a codec pads
    assert heard != low


def test_a_data_url_and_a_listed_host(tiny: TinyModels, sounds: int) -> None:
    """Audio may come as a data URL, or from a host that the operator has listed."""
    low = tiny.clip("low.wav")
    expected = hear(tiny, ONE, low)
    assert expected == hear(tiny, ONE, f"data:audio/wav;base64,{encoded(low)}")
    assert expected == hear(tiny, ONE, f"http://127.0.0.1:{sounds}/low.wav")


def test_sounds_in_a_chat(tiny: TinyModels, sounds: int) -> None:
    """OpenAI's ``input_audio``, and ``audio_url``, which follows the same rules as elsewhere."""

    def chat(part: dict[str, Any]) -> Any:
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
        return tiny.ask("audio", {"messages": json.dumps(messages), "sampling_parameters": GREEDY})

    def embedded(name: str, kind: str) -> dict[str, Any]:
        data = {"data": encoded(tiny.clip(name)), "format": kind}
        return {"type": "input_audio", "input_audio": data}

    def url(address: str) -> dict[str, Any]:
        return {"type": "audio_url", "audio_url": {"url": address}}

    low = chat(embedded("low.wav", "wav"))
    assert not low.error, low.error
    assert low.outputs == chat(url(f"http://127.0.0.1:{sounds}/low.wav")).outputs
    high = chat(embedded("high.m4a", "m4a"))
    assert not high.error, high.error
    assert low.outputs["text_output"] != high.outputs["text_output"]
    assert "no.such.host is not in allowed" in chat(url("http://no.such.host/a.wav")).error
    broken = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    assert "messages: Invalid or corrupted audio" in chat(broken).error


@pytest.mark.parametrize(
    ("prompt", "items", "expected"),
    [
        (ONE, ["?not base64?"], "audio[0]:"),
        (ONE, [b"no sound"], "audio[0]: Invalid"),
        (ONE, [""], "audio[0]:"),
        (ONE, [wav(0.001)], "is too short to be represented inside the model"),
        (ONE, [wav(1)[:20]], "audio[0]:"),
        (ONE, [png(30, 30, (9, 9, 9))], "audio[0]:"),
        (ONE, ["FILM"], "audio[0]: No audio"),
        (ONE, [wav(700, 4_000)], "audio[0]: Audio exceeds maximum allowed duration of 600s"),
        (ONE, [wav(1), "?not base64?"], "audio[1]:"),
        (PLACE * 2 + ONE, [wav(1)] * 3, "At most 2 audio(s)"),
        (PLACE, [wav(1)] * 2, "audio: the model's processor does not take it"),
        ("What?", [wav(1)], "audio: the model's processor does not take it"),
        (PLACE * 2, [wav(30)] * 2, "longer than the maximum model length of 1024"),
        (ONE, ["http://example.com/a.wav"], "audio[0]: example.com is not in allowed"),
        (ONE, ["http://127.0.0.1:PORT/elsewhere"], "answered with HTTP status 302"),
        (ONE, ["http://127.0.0.1:PORT/missing"], "answered with HTTP status 404"),
        (ONE, ["http://127.0.0.1:PORT/text"], "audio[0]: Invalid"),
        (ONE, ["file:///etc/passwd"], "only http, https and data URLs are fetched"),
    ],
    ids=[
        *("not base64", "no sound", "empty", "too short", "cut header", "an image"),
        *("a silent film", "too long", "the second", "too many", "a place too few", "no place"),
        *("beyond the context", "not listed", "redirect", "missing", "text", "file"),
    ],
)
def test_wrong_sounds_are_refused(
    tiny: TinyModels, sounds: int, prompt: str, items: list[bytes | str], expected: str
) -> None:
    """The error names the item and the reason; the next request succeeds."""
    contents = [tiny.clip("red.mp4") if item == "FILM" else item for item in items]
    sent = [
        encoded(c) if isinstance(c, bytes) else c.replace("PORT", str(sounds)) for c in contents
    ]
    for _ in range(2):  # what a cache has kept of it is no better
        error = tiny.ask("audio", {"text_input": prompt, "audio": sent}).error
        assert expected in error
    assert "Traceback" not in error
    hear(tiny, ONE, wav(1))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_other_media_are_not_for_this_model(tiny: TinyModels, kind: str) -> None:
    """The error says what the model takes."""
    error = tiny.ask("audio", {"text_input": ONE, kind: [encoded(wav(1))]}).error
    assert f"{kind}: this model takes audio only" in error


def test_what_was_too_much_together_is_heard_alone(tiny: TinyModels) -> None:
    """The engine does not take an item of a refused request for one that it has cached."""
    tone = wav(30, 16_000)
    assert tiny.ask("audio", {"text_input": PLACE * 2, "audio": [encoded(tone)] * 2}).error
    _, tokens = hear(tiny, ONE, tone)
    assert len("What?") + 2 + 30 * TOKENS_A_SECOND == tokens


def test_a_place_without_a_sound_does_no_harm(tiny: TinyModels) -> None:
    """A prompt with a placeholder and without audio is plain text."""
    response = tiny.ask("audio", {"text_input": ONE, "sampling_parameters": GREEDY})
    assert response.error or response.outputs["text_output"]
    hear(tiny, ONE, wav(1))


@pytest.mark.parametrize(("name", "line"), document_lines("AUDIO"))
def test_a_line_of_the_document(tiny: TinyModels, name: str, line: str) -> None:
    """Each line gets an answer with a text, which may be empty."""
    assert "text_output" in tiny.run_line(line, "audio")
