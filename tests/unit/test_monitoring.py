"""The files of deploy/monitoring fit together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.model_folder import ROOT
from tests.unit.fakes import counted_engine
from triton_vllm.counters import Traffic
from triton_vllm.metrics.front_end import FrontEndMetrics

MONITORING = ROOT / "deploy/monitoring"
DASHBOARD = MONITORING / "grafana/dashboards/vllm-on-triton.json"


def test_the_dashboard_is_what_its_script_writes(tmp_path: Path) -> None:
    """Whoever edits one without the other is told."""
    copy = tmp_path / "make_dashboard.py"
    copy.write_text((MONITORING / "make_dashboard.py").read_text())
    (tmp_path / "grafana/dashboards").mkdir(parents=True)
    subprocess.run([sys.executable, copy], check=True)
    made = tmp_path / DASHBOARD.relative_to(MONITORING)
    assert DASHBOARD.read_text() == made.read_text()


@pytest.mark.parametrize("file", [DASHBOARD, MONITORING / "alerts.yml"], ids=["panels", "alerts"])
def test_our_own_metrics_exist_under_the_names_used(file: Path) -> None:
    """Every triton_vllm: name in a query is one that a front end exports."""
    own = FrontEndMetrics(counted_engine(), [Traffic()])
    exported = {sample.name for family in own.collect() for sample in family.samples}
    used = set(re.findall(r"triton_vllm:\w+", file.read_text()))
    assert used
    assert set() == used - exported


def test_panels_do_not_overlap() -> None:
    """Each panel has its own place in Grafana's grid of 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
