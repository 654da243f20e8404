"""`aibrix-ray dashboards`, and what of it lies in kuberay/monitoring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from aibrix_ray.cli import app
from aibrix_ray.observability import dashboards, pod_monitor, prometheus_rule, rules

MONITORING = Path(__file__).parents[2] / "kuberay" / "monitoring"
HOW = "aibrix-ray dashboards --out kuberay/monitoring"


def run(out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["dashboards", "--out", str(out), *options])


def test_it_writes_dashboards_and_rules(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert run(out).exit_code == 0
    read = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert read == dashboards()
    assert yaml.safe_load((out / "rules.yaml").read_text()) == rules()
    objects = list(yaml.safe_load_all((out / "operator.yaml").read_text()))
    assert objects == [pod_monitor(), prometheus_rule(rules())]


def test_filters_and_thresholds_reach_the_files(tmp_path: Path) -> None:
    options = ["--filter", 'cluster="a,b"', "--filter", 'team=~"x"', "--failed-share", "0.2"]
    assert run(tmp_path, *options, "--ttft-p99-s", "2").exit_code == 0
    text = (tmp_path / "rules.yaml").read_text()
    assert "> 0.2" in text
    assert "> 2" in text
    filters = ('cluster="a,b"', 'team=~"x"')
    assert json.loads((tmp_path / "overview.json").read_text()) == dashboards(filters)["overview"]


@pytest.mark.parametrize(
    "matcher",
    ["", "cluster", "cluster=prod", 'a="b", c="d"', '="x"', 'a="b"}', 'a="b\\"', 'a="\n"'],
)
def test_what_is_no_matcher_is_refused(tmp_path: Path, matcher: str) -> None:
    result = run(tmp_path, "--filter", matcher)
    assert result.exit_code == 2
    assert "a label matcher" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file")
    assert (result.exit_code, "--out" in result.stderr) == (2, True)


def test_what_lies_in_the_repository_is_what_it_writes(tmp_path: Path) -> None:
    assert run(tmp_path).exit_code == 0
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    stored = {path.name: path.read_text() for path in MONITORING.iterdir()}
    assert stored == written, f"make it again: {HOW}"


def test_the_pods_of_a_manifest_are_the_ones_that_are_scraped() -> None:
    manifest = yaml.safe_load((MONITORING.parent / "rayservice-quickstart.yaml").read_text())
    head = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    ports = {port["name"] for port in head["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in pod_monitor()["spec"]["podMetricsEndpoints"]} <= ports
