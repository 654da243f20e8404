from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from aibrix_ray.cli import app
from tests.kuberay.files import ROOT, container_of, head_of, serve_config_of, workers_of

QUICKSTART = ROOT / "examples" / "quickstart.yaml"


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    """Run the command line in this process."""
    wide = {"COLUMNS": "200", "NO_COLOR": "1", **(env or {})}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=wide)


def test_the_manifest_is_printed_and_nothing_else() -> None:
    result = run("kube", "render", QUICKSTART)
    assert result.exit_code == 0
    assert result.stderr.startswith("note: clients need an API key")
    assert len(result.stderr.splitlines()) == 1
    manifest = yaml.safe_load(result.stdout)
    assert manifest["kind"] == "RayService"
    assert manifest["metadata"]["name"] == "quickstart"
    assert container_of(head_of(manifest))["image"] == "aibrix-ray:ray-2.60.0"


def test_the_options_reach_the_manifest() -> None:
    result = run(
        *("kube", "render", QUICKSTART, "--name", "chat", "--image", "a:b", "--namespace", "llm"),
        *("--ray-version", "2.60.1", "--hf-token-secret", "hf:token"),
        *("--store-secret", "keys:url"),
    )
    manifest = yaml.safe_load(result.stdout)
    assert manifest["metadata"]["name"] == "chat"
    assert manifest["metadata"]["namespace"] == "llm"
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == "2.60.1"
    (worker,) = workers_of(manifest)
    assert container_of(worker)["image"] == "a:b"
    assert container_of(worker)["env"][0]["valueFrom"]["secretKeyRef"]["key"] == "token"
    (store,) = container_of(head_of(manifest))["env"]
    assert store["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "url"}
    assert "--store-secret keys:url" in result.stdout


def test_settings_from_outside_are_in_the_manifest_and_named_in_its_head() -> None:
    result = run(
        *("kube", "render", QUICKSTART, "--set", "tiny.replicas.max=3"),
        env={"AIBRIX_RAY__GATEWAY__PORT": "9000"},
    )
    manifest = yaml.safe_load(result.stdout)
    (worker,) = workers_of(manifest)
    assert worker["maxReplicas"] == 3
    assert container_of(worker)["ports"] == [{"name": "serve", "containerPort": 9000}]
    assert serve_config_of(manifest)["applications"][0]["args"]["port"] == 9000
    assert "# Set from outside of the file: gateway.port, tiny.replicas.max\n" in result.stdout


def test_the_head_tells_how_to_make_it_and_no_path_of_this_machine(tmp_path: Path) -> None:
    copy = tmp_path / "my file.yaml"
    copy.write_text(QUICKSTART.read_text())
    first, second, *_ = run("kube", "render", copy).stdout.splitlines()
    assert "made from my file.yaml" in first
    assert "aibrix-ray kube render 'my file.yaml' --name my-file" in second
    assert str(tmp_path) not in first + second


def test_a_file_is_written_with_what_would_have_been_printed(tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    result = run("kube", "render", QUICKSTART, "-o", out)
    assert result.exit_code == 0
    assert f"kubectl apply -f {out}" in result.stdout
    assert out.read_text() == run("kube", "render", QUICKSTART).stdout


def test_notes_go_to_standard_error() -> None:
    result = run(
        *("kube", "render", QUICKSTART, "--set", "tiny.replicas.min=0"),
        *("--set", "gateway.auth.open_to_network=true"),
    )
    assert result.stderr == "note: tiny.replicas.min is 0: no pod is started for it\n"
    yaml.safe_load(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--name", "A_B"], "--name"),
        (["--ray-version", "2.9.0"], "--ray-version"),
        (["--hf-token-secret", "hf_Token"], "--hf-token-secret"),
        (["--set", "gateway.port=8080"], "gateway.args.port"),
        (["--set", "gateway.http.tls={cert_file: a, key_file: b}"], "gateway.args.http.tls"),
        (
            ["--store-secret", "keys", "--set", "gateway.auth.open_to_network=true"],
            "--store-secret",
        ),
        (["--set", "tiny.replicas.max=0"], "--set tiny.replicas.max"),
        (["-o", "/no/such/folder/out.yaml"], "--out"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments: list[str], named: str) -> None:
    result = run("kube", "render", QUICKSTART, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {named}")
    assert result.stderr.count("\n") == 1


def test_rendering_loads_neither_ray_nor_vllm() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from aibrix_ray.cli import app; "
        f"result = CliRunner().invoke(app, ['kube', 'render', {str(QUICKSTART)!r}]); "
        "assert result.exit_code == 0, result.output; "
        "print([name for name in ('ray', 'vllm', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
