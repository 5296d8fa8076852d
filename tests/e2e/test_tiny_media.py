"""Images on the real server: base64, URLs, and what must not be fetched."""

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
from tests.e2e.tiny_models import TinyModels, document_lines, serve_vision
from tests.hostile import DAMAGED_IMAGES, cases
from tests.hostile import encoded as as_base64
from tests.pictures import odd_images, png, site

# The default run sees images with the model of test_tiny_video.py.
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
HOSTILE_CASES = int(os.environ.get("HOSTILE_MEDIA_CASES", "20"))
ONE = "<image>What?"
GREEDY = sampling(temperature=0, max_tokens=8, ignore_eos=True)


RED, BLUE = png(30, 40, (255, 0, 0)), png(20, 20, (0, 0, 255))


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


@pytest.fixture(scope="module")
def pictures() -> Iterator[int]:
    """The port of a server of images on the loopback interface."""
    with site({"red.png": RED, "text": b"no image"}) as port:
        yield port


@pytest.fixture(scope="module", autouse=True)
def _vision(tiny: TinyModels) -> None:
    serve_vision(tiny)


def see(tiny: TinyModels, prompt: str, images: list[str]) -> tuple[str, int]:
    """Return what the model says to images, and how many tokens the prompt has."""
    return tiny.perceive("vision", prompt, GREEDY, image=list(images))


def test_the_model_sees_the_images(tiny: TinyModels) -> None:
    """Each image takes its tokens in the prompt, and what is on it changes the answer."""
    red, one = see(tiny, ONE, [encoded(RED)])
    blue, _ = see(tiny, ONE, [encoded(BLUE)])
    _, two = see(tiny, f"<image>{ONE}", [encoded(RED), encoded(BLUE)])
    image = two - one
    assert len("What?") + image == one
    assert image > 1
    assert red != blue


def test_a_data_url_and_a_listed_host(tiny: TinyModels, pictures: int) -> None:
    """An image may come as a data URL, or from an address that the operator has listed."""
    expected = see(tiny, ONE, [encoded(RED)])
    assert expected == see(tiny, ONE, [f"data:image/png;base64,{encoded(RED)}"])
    assert expected == see(tiny, ONE, [f"http://127.0.0.1:{pictures}/red.png"])


def test_an_image_in_a_chat(tiny: TinyModels, pictures: int) -> None:
    """A message's image_url is fetched by the same rules."""

    def chat(url: str) -> Any:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        messages = json.dumps([{"role": "user", "content": parts}])
        return tiny.ask("vision", {"messages": messages, "sampling_parameters": GREEDY})

    fetched = chat(f"http://127.0.0.1:{pictures}/red.png")
    assert not fetched.error, fetched.error
    embedded = chat(f"data:image/png;base64,{encoded(RED)}")
    assert fetched.outputs == embedded.outputs
    assert "no.such.host is not in allowed_media_domains" in chat("http://no.such.host/a.png").error
    assert "is at a private address" in chat(f"http://localhost:{pictures}/red.png").error


@pytest.mark.parametrize(
    ("prompt", "images", "expected"),
    [
        (ONE, ["?not base64?"], "image[0]:"),
        (ONE, [encoded(b"no image")], "image[0]: Failed to load image"),
        (ONE, [encoded(png(20_000, 20_000, (0, 0, 0)))], "image[0]:"),
        (f"<image><image>{ONE}", [encoded(RED)] * 3, "At most 2 image(s)"),
        ("What?", [encoded(RED)], ""),
        (ONE, ["http://169.254.169.254/latest/meta-data"], "is not in allowed_media_domains"),
        (ONE, ["http://example.com/a.png"], "example.com is not in allowed_media_domains"),
        (ONE, ["http://localhost:PORT/red.png"], "localhost is at a private address"),
        (ONE, ["http://127.0.0.1:PORT/elsewhere"], "answered with HTTP status 302"),
        (ONE, ["http://127.0.0.1:PORT/missing"], "answered with HTTP status 404"),
        (ONE, ["http://127.0.0.1:PORT/text"], "image[0]: Failed to load image"),
        (ONE, ["http://127.0.0.1@example.com/a.png"], "example.com is not in"),
        (ONE, ["file:///etc/passwd"], 'only http, https and data URLs are fetched, got "file"'),
        (ONE, ["/etc/passwd"], "image[0]:"),
        (ONE, [""], "image[0]:"),
        ("<image>", [encoded(RED)] * 2, "image: the model's processor does not take it"),
    ],
    ids=[
        "not base64",
        "no image",
        "decompression bomb",
        "too many",
        "no place",
        "cloud's metadata",
        "not listed",
        "private by name",
        "redirect",
        "missing",
        "text",
        "user part",
        "file",
        "path",
        "empty",
        "a place too few",
    ],
)
def test_wrong_images_are_refused(
    tiny: TinyModels, pictures: int, prompt: str, images: list[str], expected: str
) -> None:
    """The error says which image, and why; the next request is served."""
    images = [image.replace("PORT", str(pictures)) for image in images]
    error = tiny.ask("vision", {"text_input": prompt, "image": images}).error
    assert error
    assert expected in error
    assert "Traceback" not in error
    see(tiny, ONE, [encoded(RED)])


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_do_no_harm(tiny: TinyModels, name: str) -> None:
    """The model accepts an image of any size and mode, or the client gets INVALID_ARG."""
    image = encoded(odd_images()[name])
    response = tiny.ask("vision", {"text_input": ONE, "image": [image]})
    assert response.error or response.outputs["text_output"]
    if response.error:
        assert response.error.startswith("image"), response.error
    see(tiny, ONE, [encoded(RED)])


def test_damaged_images_do_no_harm(tiny: TinyModels) -> None:
    """The same engine runs before and after the requests."""
    truth = see(tiny, ONE, [encoded(RED)])
    engine = tiny.server.processes("VLLM::EngineCore")
    ends: Counter[bool] = Counter()

    @cases(HOSTILE_CASES)
    @given(image=as_base64(DAMAGED_IMAGES))
    def check(image: bytes) -> None:
        error = tiny.ask("vision", {"text_input": ONE, "image": [image.decode()]}).error
        assert not error or error.startswith("image"), error
        ends[bool(error)] += 1

    check()
    assert min(ends[True], ends[False]) > HOSTILE_CASES // 20
    assert truth == see(tiny, ONE, [encoded(RED)])
    assert engine == tiny.server.processes("VLLM::EngineCore")


def test_no_adapters_yet(tiny: TinyModels) -> None:
    """LoRA is on, and the list in the model's folder is empty."""
    error = tiny.ask("vision", {"text_input": "x"}, parameters={"lora_name": "loud"}).error
    assert 'lora_name: unknown adapter "loud", available: none' in error


@pytest.mark.parametrize(("name", "line"), document_lines("VISION"))
def test_a_line_of_the_document(tiny: TinyModels, name: str, line: str) -> None:
    """Each line gets an answer with a text, which may be empty."""
    assert "text_output" in tiny.run_line(line, "vision")
