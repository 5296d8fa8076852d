"""Mistakes in the model's files: the load fails with one readable line, and nothing is left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.grpc_requests import generate
from tests.e2e.model_folder import CHECKPOINT, ENGINE_ARGS, add_model, use_front_ends, use_gpus
from tests.e2e.triton_server import TritonServer
from tests.tiny_llama import make_tiny_llama

pytestmark = pytest.mark.timeout(200)


@dataclass(frozen=True)
class Mistake:
    """A mistake in the model's folder, and what the load must say of it."""

    make: Callable[[Path], object]
    expected: tuple[str, ...]


def engine_args(content: str) -> Callable[[Path], object]:
    return lambda model: (model / "vllm_engine_args.json").write_text(content)


def changed(**changes: object) -> Callable[[Path], object]:
    return engine_args(json.dumps(ENGINE_ARGS | changes))


def not_decoupled(model: Path) -> None:
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace("decoupled: true", "decoupled: false"))


def corrupt_weights(model: Path) -> None:
    """A checkpoint whose file of weights ends in the middle, as after a copy that was cut off."""
    checkpoint = make_tiny_llama(model / "tiny", CHECKPOINT)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    changed(model=str(checkpoint))(model)


def on_gpus(devices: str, count: int = 1) -> Callable[[Path], object]:
    """Return what places ``count`` instances on these sets of GPUs."""

    def place(model: Path) -> None:
        use_front_ends(model, count)
        use_gpus(model, devices)

    return place


FILE = "vllm_engine_args.json: "
MISTAKES = {
    "no_file": Mistake(
        lambda model: (model / "vllm_engine_args.json").unlink(), (FILE, "no such file", '"model"')
    ),
    "malformed": Mistake(
        engine_args('{"model": "m",\n "dtype" "auto"}'), (FILE, "not JSON", "line 2, column 10")
    ),
    "serving": Mistake(
        changed(serving={"cancellation_check_second": 1}),
        (FILE, '"cancellation_check_second"', 'did you mean "cancellation_poll_seconds"?'),
    ),
    "not_decoupled": Mistake(not_decoupled, ("config.pbtxt: ", "decoupled: true")),
    "unknown_key": Mistake(
        changed(max_modle_len=512),
        (FILE, 'unknown key "max_modle_len", did you mean "max_model_len"?'),
    ),
    "wrong_type": Mistake(
        changed(max_num_seqs="many"), (FILE, '"max_num_seqs": invalid int value', 'got "many"')
    ),
    "wrong_dtype": Mistake(
        changed(dtype="float12"), (FILE, '"dtype": invalid choice', 'got "float12"')
    ),
    "dtype_that_is_a_number": Mistake(changed(dtype=16), (FILE, '"dtype": ', "got 16")),
    "too_little_memory": Mistake(
        changed(kv_cache_memory_bytes=4096),
        (FILE, "the engine did not start: ValueError: ", "memory"),
    ),
    "too_much_memory": Mistake(
        changed(kv_cache_memory_bytes=1 << 46), (FILE, "the engine did not start: ", "memory")
    ),
    "corrupt_weights": Mistake(
        corrupt_weights, (FILE, "the engine did not start: ", "SafetensorError: ")
    ),
    "two_files": Mistake(
        lambda model: (model / "1/model.json").write_text("{}"),
        ("1/model.json: ", "vllm_engine_args.json exists too"),
    ),
    "overlapping_gpus": Mistake(
        on_gpus("0,1;1,2", 2), ("config.pbtxt: ", "gpu_device_ids has GPU 1 twice")
    ),
    "malformed_gpus": Mistake(on_gpus("0-1"), ("config.pbtxt: ", "gpu_device_ids", 'got "0-1"')),
    "too_few_instances": Mistake(
        on_gpus("0;1"), ("config.pbtxt: ", "1 instances", "2 sets", "2 instances are needed")
    ),
    "sets_of_another_size": Mistake(
        on_gpus("0,1"), (FILE, "ask for 1 GPU, and config.pbtxt gives 2 to each engine (0,1)")
    ),
    "no_such_model": Mistake(changed(model="/no/such/model"), (FILE, 'model "/no/such/model": ')),
    "no_such_name": Mistake(
        changed(model="no-such-org/no-such-model"), (FILE, 'model "no-such-org/no-such-model": ')
    ),
    "not_a_name": Mistake(changed(model="a/b/c"), (FILE, 'model "a/b/c": ')),
}


# One of each kind. That the others are told is in the tests of unit and contract, too.
IN_EACH_RUN = (
    "no_file",
    "serving",
    "malformed_gpus",
    "unknown_key",
    "no_such_model",
    "corrupt_weights",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_EACH_RUN else pytest.mark.slow)
        for name in MISTAKES
    ],
)
def test_a_mistake_fails_the_load_with_one_line(triton: TritonServer, name: str) -> None:
    """The load API's error has the file, the key and what to do; no process is left."""
    before = {process.pid for process in triton.processes()}
    MISTAKES[name].make(add_model(triton.repository, name))
    line, *trailer = triton.load(name).splitlines()
    for expected in MISTAKES[name].expected:
        assert expected in line
    # Triton's own, whatever the exception: "At:", and where in model.py it was raised.
    assert ["model.py("] == [text.rpartition("/")[2][:9] for text in trailer if "/" in text]
    deadline = time.monotonic() + 10
    while left := {p.pid for p in triton.processes()} - before:
        assert time.monotonic() < deadline, [
            p.cmdline() for p in triton.processes() if p.pid in left
        ]
        time.sleep(0.1)


def test_the_good_model_still_serves(triton: TritonServer) -> None:
    """A model that was loaded before is not touched by the others' mistakes."""
    assert " Paris" == generate(triton, "The capital of France is", max_tokens=1)
