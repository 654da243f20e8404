"""Every example is one that works: files are valid, scripts are documented and importable."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from aibrix_ray.cli import app
from aibrix_ray.config import json_schema
from aibrix_ray.routing import make_policy
from aibrix_ray.types import ReplicaView, RequestView

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "examples").glob("[!_]*.py"))


def test_there_are_examples() -> None:
    assert ROOT / "examples" / "quickstart.yaml" in FILES
    assert SCRIPTS


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_file_passes_config_check(file: Path) -> None:
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"OK: {file}")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_file_fits_the_schema_of_editors(file: Path) -> None:
    import jsonschema

    jsonschema.validate(yaml.safe_load(file.read_text()), json_schema())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_file_can_be_rendered_for_kubernetes(file: Path) -> None:
    result = CliRunner().invoke(app, ["kube", "render", str(file)])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_policy_that_a_file_names_exists_and_takes_its_options(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    for application in yaml.safe_load(file.read_text())["applications"]:
        for deployment in application.get("deployments", []):
            routing = deployment.get("user_config", {}).get("routing")
            if routing is not None:
                make_policy(routing["policy"], seed=0, options=routing.get("options"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_how_to_run_it_and_starts_nothing_when_imported(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text())) or ""
    assert "make serve" in docstring
    monkeypatch.syspath_prepend(ROOT)
    module = importlib.import_module(f"examples.{script.stem}")
    assert callable(module.main)


def test_the_policy_passes_its_own_test() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.user_policy"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alice's replica is ")


def test_the_policy_spreads_users_and_moves_only_those_of_a_replica_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from examples.user_policy import StickyUser

    policy = StickyUser(seed=0)
    replicas = [ReplicaView(replica_id=f"r{i}", group="g", model="m") for i in range(4)]

    def homes(fleet: list[ReplicaView]) -> dict[str, str]:
        found = {}
        for i in range(200):
            request = RequestView(request_id=str(i), model="m", user=f"user-{i}")
            replica = policy.choose(request, fleet, now_s=0.0).replica
            assert replica is not None
            found[f"user-{i}"] = replica.replica_id
        return found

    before, after = homes(replicas), homes(replicas[:-1])
    assert set(before.values()) == {"r0", "r1", "r2", "r3"}
    assert all(after[user] == home for user, home in before.items() if home != "r3")
