#!/usr/bin/env python3
"""Probe a vLLM model on Triton, for a container's health checks. Needs Python's standard library.

    probe.py live     exit code 1 if only a restart of the server helps: a process of the model was
                      killed or hangs, or its engine died and will not be restarted
    probe.py ready    exit code 1 also while the model cannot serve: send no traffic

After a process of a model was killed, Triton 24.10 still calls the model READY and exports the
last metrics of that process. One of them is the time of its last heartbeat, which no longer
advances. A model without a heartbeat is not loaded, which is no reason to restart the server.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request

_TIMEOUT = 5.0  # seconds for a response
HEARTBEAT = "triton_vllm:heartbeat_timestamp_seconds"
ENGINE_UP = "triton_vllm:engine_up"
GAVE_UP = "triton_vllm:engine_failed"


class UnhealthyError(Exception):
    """The probe failed; the message says why, in one line."""


def main() -> int:
    """Probe once; print one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["live", "ready"])
    parser.add_argument("--model", default="vllm")
    parser.add_argument("--http", default="127.0.0.1:8000", help="Triton's HTTP address")
    parser.add_argument("--metrics", default="127.0.0.1:8002", help="Triton's metrics address")
    parser.add_argument(
        "--max-age", type=float, default=15, help="highest age of a heartbeat in seconds"
    )
    parser.add_argument(
        "--request",
        action="store_true",
        help="generate one token instead of reading metrics, for a server without metrics",
    )
    options = parser.parse_args()
    try:
        if options.request:
            _generate(options)
        else:
            _check_metrics(options)
        if options.what == "ready":
            _get(f"http://{options.http}/v2/models/{options.model}/ready")
    except (UnhealthyError, OSError) as error:
        print(f"{options.what}: no: {error}"[:500])
        return 1
    print(f"{options.what}: yes")
    return 0


def _check_metrics(options: argparse.Namespace) -> None:
    text = _get(f"http://{options.metrics}/metrics")
    beats = _values(text, HEARTBEAT, options.model)
    if not beats and options.what == "ready":
        raise UnhealthyError(f"no heartbeat of {options.model}: not loaded, or metrics are off")
    if beats and (age := time.time() - min(beats)) > options.max_age:
        raise UnhealthyError(f"the last heartbeat is {age:.0f} s old")
    if 1 in _values(text, GAVE_UP, options.model):
        raise UnhealthyError("the engine died and is not started again")
    if options.what == "ready" and 0 in _values(text, ENGINE_UP, options.model):
        raise UnhealthyError("the engine is down")


def _values(metrics: str, name: str, model: str) -> list[float]:
    """Return the values of a metric of a model, one for each front end."""
    return [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith(f"{name}{{") and f'model="{model}"' in line
    ]


def _generate(options: argparse.Namespace) -> None:
    body = json.dumps({"text_input": "a", "max_tokens": 1}).encode()
    try:
        _get(f"http://{options.http}/v2/models/{options.model}/generate", body)
    except UnhealthyError as error:
        # Any other error comes from a live model, or from Triton if the model is not loaded.
        said = str(error)
        gave_up = "the engine died" in said and "is being restarted" not in said
        if options.what == "ready" or gave_up or "is not healthy" in said:
            raise


def _get(url: str, body: bytes | None = None) -> str:
    try:
        with urllib.request.urlopen(url, data=body, timeout=_TIMEOUT) as response:  # noqa: S310
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            raise UnhealthyError(f"{url}: {error.code} {error.read().decode()}") from None


if __name__ == "__main__":
    sys.exit(main())
