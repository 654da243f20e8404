"""`aibrix-ray dashboards`: Grafana dashboards and Prometheus rules. Speaks to neither."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from aibrix_ray.errors import ConfigError

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; made if it is not there.")]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        help='Label matcher that every query gets, such as cluster="prod"; may be repeated.',
        metavar="MATCHER",
    ),
]
FailedShare = Annotated[
    float, typer.Option(help="Alert above this share of failed requests.", min=0.0, max=1.0)
]
TtftP99 = Annotated[
    float, typer.Option(help="Alert above this 99th percentile of TTFT in seconds.", min=0.0)
]

#: A label, an operator, a quoted text in which quotes are escaped.
_MATCHER = re.compile(r'[a-zA-Z_]\w*(=|!=|=~|!~)"(?:[^"\\\n]|\\.)*"')


def register(app: typer.Typer) -> None:
    """Add the command to the CLI."""
    app.command("dashboards")(dashboards)


def dashboards(
    out: Out,
    filters: Filters = None,
    failed_share: FailedShare = 0.05,
    ttft_p99_s: TtftP99 = 5.0,
) -> None:
    """Write Grafana dashboards (JSON), Prometheus rules, and both for the Prometheus operator.

    Load the JSON files in Grafana, name rules.yaml under `rule_files` of Prometheus; on Kubernetes
    apply operator.yaml instead. They depend on nothing but this version and the options.
    """
    from aibrix_ray import observability
    from aibrix_ray.kuberay import to_yaml

    matchers = [_checked(each) for each in filters or ()]
    thresholds = observability.Thresholds(failed_share=failed_share, ttft_p99_s=ttft_p99_s)
    rules = observability.rules(matchers, thresholds)
    texts = {
        f"{name}.json": json.dumps(content, indent=2) + "\n"
        for name, content in observability.dashboards(matchers).items()
    }
    operator = [observability.pod_monitor(), observability.prometheus_rule(rules)]
    texts["rules.yaml"] = to_yaml(rules)
    texts["operator.yaml"] = "---\n".join(map(to_yaml, operator))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            path="--out", value=str(out), expected="a folder that can be written", hint=str(error)
        ) from error
    typer.echo(f"wrote {', '.join(sorted(texts))} in {out}")


def _checked(matcher: str) -> str:
    if _MATCHER.fullmatch(matcher) is None:
        raise ConfigError(
            path="--filter", value=matcher, expected='a label matcher such as cluster="prod"'
        )
    return matcher
