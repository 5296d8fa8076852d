"""Films, and images, on the real server with a model that sees both."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from tests.e2e.grpc_requests import sampling
from tests.e2e.tiny_models import TinyModels, document_lines, serve_video
from tests.hostile import DAMAGED_IMAGES, cases, damaged
from tests.pictures import png, site

pytestmark = pytest.mark.timeout(300)
HOSTILE_CASES = int(os.environ.get("HOSTILE_MEDIA_CASES", "10"))
PLACE = "<|vision_start|><|video_pad|><|vision_end|>"
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
ONE = f"{PLACE}What?"
FILM_TOKENS = 8  # of a second two frames, but at least 4: two pairs, each of two by two
GREEDY = sampling(temperature=0, max_tokens=8, ignore_eos=True)


def encoded(film: bytes) -> str:
    return base64.b64encode(film).decode()


@pytest.fixture(scope="module", autouse=True)
def _video(tiny: TinyModels) -> None:
    serve_video(tiny)


@pytest.fixture(scope="module")
def films(tiny: TinyModels) -> Iterator[int]:
    """The port of a server of videos on the loopback interface."""
    with site({"red.mp4": tiny.clip("red.mp4"), "text": b"no film"}) as port:
        yield port


def watch(tiny: TinyModels, prompt: str, *items: bytes | str) -> tuple[str, int]:
    """Return the model's answer to videos, and the number of tokens in the prompt."""
    return tiny.perceive("video", prompt, GREEDY, video=list(items))


def test_the_model_sees_the_films(tiny: TinyModels) -> None:
    """Each video takes its tokens in the prompt, and its color changes the answer."""
    red, one = watch(tiny, ONE, tiny.clip("red.mp4"))
    blue, _ = watch(tiny, ONE, tiny.clip("blue.mp4"))
    _, two = watch(tiny, PLACE + ONE, tiny.clip("red.mp4"), tiny.clip("blue.mp4"))
    assert len("What?") + 2 + FILM_TOKENS == one
    assert 2 + FILM_TOKENS == two - one
    assert red != blue
    assert (red, one) == watch(tiny, ONE, tiny.clip("red.mp4"))


def test_a_film_and_an_image(tiny: TinyModels) -> None:
    """Both kinds go into one prompt."""
    _, one = watch(tiny, ONE, tiny.clip("red.mp4"))
    image = png(56, 56, (255, 0, 0))
    _, both = tiny.perceive(
        "video", PICTURE + ONE, GREEDY, video=[tiny.clip("red.mp4")], image=[image]
    )
    assert 2 + 4 == both - one


def test_a_data_url_and_a_listed_host(tiny: TinyModels, films: int) -> None:
    """A video may come as a data URL, or from a host that the operator has listed."""
    red = tiny.clip("red.mp4")
    expected = watch(tiny, ONE, red)
    assert expected == watch(tiny, ONE, f"data:video/mp4;base64,{encoded(red)}")
    assert expected == watch(tiny, ONE, f"http://127.0.0.1:{films}/red.mp4")


def test_films_in_a_chat(tiny: TinyModels, films: int) -> None:
    """A message's video_url follows the same rules and gives the same video."""

    def chat(url: str) -> Any:
        parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "?"}]
        messages = json.dumps([{"role": "user", "content": parts}])
        return tiny.ask("video", {"messages": messages, "sampling_parameters": GREEDY})

    red = chat(f"http://127.0.0.1:{films}/red.mp4")
    assert not red.error, red.error
    assert red.outputs == chat(f"data:video/mp4;base64,{encoded(tiny.clip('red.mp4'))}").outputs
    blue = chat(f"data:video/mp4;base64,{encoded(tiny.clip('blue.mp4'))}")
    assert red.outputs["text_output"] != blue.outputs["text_output"]
    assert "no.such.host is not in allowed" in chat("http://no.such.host/a.mp4").error
    assert "messages: Could not open video" in chat("data:video/mp4;base64,AAAA").error


@pytest.mark.parametrize(
    ("prompt", "items", "expected"),
    [
        (ONE, ["?not base64?"], "video[0]:"),
        (ONE, [b"no film"], "video[0]: Could not open video"),
        (ONE, [""], "video[0]:"),
        (ONE, ["CUT"], "video[0]:"),
        (ONE, ["SOUND"], "video[0]:"),
        ("What?", ["FILM"], "video: the model's processor does not take it"),
        (PLACE, ["FILM", "FILM"], "video: the model's processor does not take it"),
        (ONE, ["http://example.com/a.mp4"], "video[0]: example.com is not in allowed"),
        (ONE, ["http://127.0.0.1:PORT/elsewhere"], "answered with HTTP status 302"),
        (ONE, ["http://127.0.0.1:PORT/text"], "video[0]: Could not open video"),
        (ONE, ["file:///etc/passwd"], "only http, https and data URLs are fetched"),
    ],
    ids=[
        *("not base64", "no film", "empty", "cut", "a sound", "no place", "a place too few"),
        *("not listed", "redirect", "text", "file"),
    ],
)
def test_wrong_films_are_refused(
    tiny: TinyModels, films: int, prompt: str, items: list[bytes | str], expected: str
) -> None:
    """The error names the item and the reason; the next request succeeds."""
    film = tiny.clip("red.mp4")
    known = {"CUT": film[: len(film) // 3], "SOUND": tiny.clip("low.wav"), "FILM": film}
    contents = [known.get(item, item) if isinstance(item, str) else item for item in items]
    sent = [encoded(c) if isinstance(c, bytes) else c.replace("PORT", str(films)) for c in contents]
    error = tiny.ask("video", {"text_input": prompt, "video": sent}).error
    assert expected in error
    assert "Traceback" not in error
    watch(tiny, ONE, film)


def test_sound_is_not_for_this_model(tiny: TinyModels) -> None:
    """The error says what the model takes."""
    error = tiny.ask("video", {"text_input": ONE, "audio": [encoded(b"x")]}).error
    assert "audio: this model takes image, video only" in error


@pytest.mark.parametrize("prompt", [ONE, PICTURE, "<|video_pad|>" * 3, "<|vision_start|>" * 3])
def test_a_place_without_a_film_does_no_harm(tiny: TinyModels, prompt: str) -> None:
    """A prompt with a placeholder and without a video is plain text."""
    response = tiny.ask("video", {"text_input": prompt, "sampling_parameters": GREEDY})
    assert response.error or response.outputs["text_output"]
    watch(tiny, ONE, tiny.clip("red.mp4"))


def test_damaged_media_do_no_harm(tiny: TinyModels) -> None:
    """The same engine runs before and after the requests."""
    truth = watch(tiny, ONE, tiny.clip("red.mp4"))
    engine = tiny.server.processes("VLLM::EngineCore")
    assert engine
    ends: Counter[tuple[str, bool]] = Counter()

    def send(kind: str, prompt: str, content: bytes) -> None:
        error = tiny.ask("video", {"text_input": prompt, kind: [encoded(content)]}).error
        assert not error or error.startswith(kind), error
        ends[kind, bool(error)] += 1

    @cases(HOSTILE_CASES)
    @given(film=damaged([tiny.clip("red.mp4"), tiny.clip("blue.mp4")]))
    def check_films(film: bytes) -> None:
        send("video", ONE, film)

    @cases(HOSTILE_CASES)
    @given(image=DAMAGED_IMAGES)
    def check_images(image: bytes) -> None:
        send("image", f"{PICTURE}What?", image)

    check_films()
    check_images()
    for kind in ("video", "image"):
        assert min(ends[kind, True], ends[kind, False]) > HOSTILE_CASES // 20
    assert truth == watch(tiny, ONE, tiny.clip("red.mp4"))
    assert engine == tiny.server.processes("VLLM::EngineCore")


@pytest.mark.parametrize(("name", "line"), document_lines("VIDEO"))
def test_a_line_of_the_document(tiny: TinyModels, name: str, line: str) -> None:
    """Each line gets an answer with a text, which may be empty."""
    assert "text_output" in tiny.run_line(line, "video")
