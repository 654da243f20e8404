"""`aibrix-ray kube …`: manifests for Kubernetes. Speaks to no cluster."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from aibrix_ray.cli.config import File, Settings, read_effective
from aibrix_ray.config import PRECEDENCE, Sourced
from aibrix_ray.errors import ConfigError
from aibrix_ray.kuberay import (
    DEFAULT_RAY_VERSION,
    STORE,
    STORE_SECRET,
    RenderOptions,
    SecretKey,
    default_image,
    name_from,
    notes,
    render,
    to_yaml,
)

Name = Annotated[
    str, typer.Option(help="Name of the RayService; default: that of FILE.", metavar="NAME")
]
Image = Annotated[
    str,
    typer.Option(
        help="Image with Ray, an engine and this package; default: "
        f"{default_image(DEFAULT_RAY_VERSION)}.",
        metavar="IMAGE",
    ),
]
Namespace = Annotated[str, typer.Option(help="Namespace; default: kubectl's.", metavar="NS")]
RayVersion = Annotated[
    str, typer.Option(help="Version of the Ray in the image.", metavar="VERSION")
]
HfTokenSecret = Annotated[
    str,
    typer.Option(
        help="Secret with the Hugging Face token, for gated models; KEY is HF_TOKEN.",
        metavar="NAME[:KEY]",
    ),
]
StoreSecret = Annotated[
    str,
    typer.Option(
        help=f"Secret with the URL of the store of API keys; KEY is {STORE}. Default: "
        f"{STORE_SECRET.secret}, unless FILE has auth.store.",
        metavar="NAME[:KEY]",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="File to write; default: standard output.")
]


def register(app: typer.Typer) -> None:
    """Add the command group `kube`."""
    group = typer.Typer(help=f"Manifests for KubeRay. {PRECEDENCE}", no_args_is_help=True)
    group.command("render")(render_file)
    app.add_typer(group, name="kube")


def render_file(
    file: File,
    settings: Settings = None,
    name: Name = "",
    image: Image = "",
    namespace: Namespace = "",
    ray_version: RayVersion = DEFAULT_RAY_VERSION,
    hf_token_secret: HfTokenSecret = "",
    store_secret: StoreSecret = "",
    out: Out = None,
) -> None:
    """Print a RayService that serves FILE on Kubernetes.

    The manifest depends on nothing but FILE, settings and options: render it again after a change
    and apply it again.
    """
    parsed, sources = read_effective(file, settings or [])
    store = SecretKey.read(store_secret, path="--store-secret", key=STORE) if store_secret else None
    options = RenderOptions(
        name=name or name_from(file.stem),
        image=image or default_image(ray_version),
        namespace=namespace or None,
        ray_version=ray_version,
        hf_token=SecretKey.read(hf_token_secret) if hf_token_secret else None,
        store=store,
    )
    text = _header(file, options, sources) + to_yaml(render(parsed, options))
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text)
    for note in notes(parsed, options):
        typer.echo(f"note: {note}", err=True)


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            path="--out", value=str(out), expected="a file that can be written", hint=str(error)
        ) from error
    typer.echo(f"wrote {out}; apply it: kubectl apply -f {out}")


def _header(file: Path, options: RenderOptions, sources: dict[str, Sourced]) -> str:
    """Return the comment that says how the manifest was made."""
    # An absolute path would make the same manifest differ from machine to machine.
    shown = file.name if file.is_absolute() else file.as_posix()
    command = ["aibrix-ray", "kube", "render", shown, "--name", options.name]
    command += ["--image", options.image, "--ray-version", options.ray_version]
    if options.namespace is not None:
        command += ["--namespace", options.namespace]
    if options.hf_token is not None:
        command += ["--hf-token-secret", f"{options.hf_token.secret}:{options.hf_token.key}"]
    if options.store is not None:
        command += ["--store-secret", f"{options.store.secret}:{options.store.key}"]
    lines = [
        f"A RayService for KubeRay, made from {shown}. Do not edit: change that file and run",
        f"    {shlex.join(command)}",
    ]
    outside = [name for name, value in sources.items() if value.source in ("flag", "env")]
    if outside:
        lines.append(f"Set from outside of the file: {', '.join(outside)}")
    return "".join(f"# {line}\n" for line in lines)
