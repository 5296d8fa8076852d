#!/usr/bin/env python3
"""Writes the Grafana dashboard: the panels are the table below, the rest is Grafana's form.

    deploy/monitoring/make_dashboard.py

writes grafana/dashboards/vllm-on-triton.json beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parent / "grafana/dashboards/vllm-on-triton.json"
OF_MODEL = 'model=~"$model"'
INTERVAL = "$__rate_interval"
WIDTH, HEIGHT, COLUMNS = 8, 7, 3

# One panel: title, unit (Grafana's name), and the queries by legend.
Panel = tuple[str, str, dict[str, str]]


def rate(metric: str, by: str = "model", labels: str = "") -> str:
    """Return the sum of a counter's rate."""
    return f"sum by ({by}) (rate({metric}{{{OF_MODEL}{labels}}}[{INTERVAL}]))"


def quantiles(metric: str) -> dict[str, str]:
    """Return the three percentiles of a histogram, by legend."""
    return {
        f"p{percent}": f"histogram_quantile({percent / 100}, {rate(metric + '_bucket', 'le')})"
        for percent in (50, 90, 99)
    }


def gauge(metric: str, function: str = "sum", by: str = "model") -> str:
    """Return a gauge over all front ends and engines."""
    return f"{function} by ({by}) ({metric}{{{OF_MODEL}}})"


ROWS: dict[str, list[Panel]] = {
    "Throughput": [
        (
            "Tokens",
            "short",
            {
                "generated/s {{model}}": rate("vllm:generation_tokens_total"),
                "prompt/s {{model}}": rate("vllm:prompt_tokens_total"),
            },
        ),
        (
            "Requests by outcome",
            "reqps",
            {"{{outcome}}": rate("triton_vllm:requests_total", "outcome")},
        ),
        (
            "Tokens in a step of the engine",
            "short",
            {
                "mean {{model}}": rate("vllm:iteration_tokens_total_sum")
                + " / "
                + rate("vllm:iteration_tokens_total_count")
            },
        ),
    ],
    "Latency": [
        ("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
        ("Time between tokens", "s", quantiles("vllm:inter_token_latency_seconds")),
        ("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
        ("Time in the queue", "s", quantiles("vllm:request_queue_time_seconds")),
        ("Prefill", "s", quantiles("vllm:request_prefill_time_seconds")),
        ("Decode", "s", quantiles("vllm:request_decode_time_seconds")),
    ],
    "Queue and memory": [
        (
            "Requests in the engine",
            "short",
            {
                "running {{model}}": gauge("vllm:num_requests_running"),
                "waiting {{model}}": gauge("vllm:num_requests_waiting"),
            },
        ),
        (
            "KV cache in use",
            "percentunit",
            {
                "{{model}} engine {{engine}}": gauge(
                    "vllm:kv_cache_usage_perc", "max", "model, engine"
                )
            },
        ),
        (
            "Prefix cache hits",
            "percentunit",
            {
                "{{model}}": rate("vllm:prefix_cache_hits_total")
                + " / "
                + rate("vllm:prefix_cache_queries_total")
            },
        ),
        ("Preemptions", "ops", {"{{model}}": rate("vllm:num_preemptions_total")}),
        (
            "Length of requests",
            "short",
            {
                "prompt, mean": rate("vllm:request_prompt_tokens_sum")
                + " / "
                + rate("vllm:request_prompt_tokens_count"),
                "generated, mean": rate("vllm:request_generation_tokens_sum")
                + " / "
                + rate("vllm:request_generation_tokens_count"),
            },
        ),
        (
            "Finish reasons",
            "reqps",
            {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason")},
        ),
    ],
    "Front ends": [
        (
            "Alive",
            "short",
            {
                "front ends {{model}}": gauge("triton_vllm:front_ends"),
                "engine up {{model}}": gauge("triton_vllm:engine_up", "min"),
            },
        ),
        (
            "Event loop lag",
            "s",
            {
                "{{model}} {{front_end}}": gauge(
                    "triton_vllm:event_loop_lag_seconds", "max", "model, front_end"
                )
            },
        ),
        (
            "Since the last heartbeat",
            "s",
            {
                "{{model}} {{front_end}}": "time() - "
                + gauge("triton_vllm:heartbeat_timestamp_seconds", "min", "model, front_end")
            },
        ),
        (
            "Responses",
            "short",
            {
                "sent/s {{model}}": rate("triton_vllm:responses_total"),
                "merged deltas/s {{model}}": rate("triton_vllm:merged_deltas_total"),
            },
        ),
        (
            "Sender threads at work",
            "short",
            {
                "sending {{front_end}}": rate("triton_vllm:send_seconds_total", "front_end"),
                "waiting for HTTP {{front_end}}": rate(
                    "triton_vllm:http_wait_seconds_total", "front_end"
                ),
            },
        ),
        (
            "Refused and failed",
            "reqps",
            {
                "{{outcome}}": rate(
                    "triton_vllm:requests_total",
                    "outcome",
                    ', outcome=~"refused|timeout|engine_error"',
                )
            },
        ),
    ],
}


def main() -> None:
    """Write the dashboard."""
    DASHBOARD.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model."""
    return {
        "uid": "vllm-on-triton",
        "title": "vLLM on Triton",
        "tags": ["triton", "vllm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource_variable(), _model_variable()]},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH * COLUMNS, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        y += 1
        for i, panel in enumerate(row):
            place = {
                "x": i % COLUMNS * WIDTH,
                "y": y + i // COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            }
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(*panel)})
        y += -(-len(row) // COLUMNS) * HEIGHT
    return panels


def _panel(title: str, unit: str, queries: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(queries.items())
        ],
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}


def _model_variable() -> dict[str, Any]:
    return {
        "name": "model",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "query": "label_values(triton_vllm:engine_up, model)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    main()
