from __future__ import annotations

import pytest

from aibrix_ray.config import NOTHING, ApplicationChange, Diff, Effect, ServeFile, diff
from tests.config.files import GATEWAY, GROUP, make_file

OTHER = (
    "- {name: other, import_path: 'm:a', args: {x: 1}, deployments: [{name: D, num_replicas: 1}]}"
)


def changed(old: str, new: str) -> Diff:
    return diff(ServeFile.read(old).parse(), ServeFile.read(new).parse())


def effects(found: Diff) -> dict[str, Effect]:
    return {item.name: item.effect for item in found.applications}


def of(found: Diff, name: str) -> ApplicationChange:
    return next(item for item in found.applications if item.name == name)


def test_the_same_file_changes_nothing_and_neither_do_order_and_comments() -> None:
    old = make_file(group_args="{model: tiny, num_cpus: 2}")
    new = make_file(group_args="{num_cpus: 2, model: tiny} # the same")
    found = changed(old, new)
    assert effects(found) == {"gateway": Effect.UNCHANGED, "tiny": Effect.UNCHANGED}
    assert found.serve == ()


def test_an_argument_restarts_its_application_alone_and_is_named() -> None:
    found = changed(
        make_file(group_args="{model: tiny, replicas: {min: 1, max: 2}}"),
        make_file(group_args="{model: tiny, replicas: {min: 1, max: 3}}"),
    )
    assert effects(found) == {"gateway": Effect.UNCHANGED, "tiny": Effect.RESTARTED}
    (change,) = of(found, "tiny").changes
    assert (change.path, change.old, change.new) == ("args.replicas.max", 2, 3)
    assert "max_surge_percent: 100" in of(found, "tiny").note


def test_user_config_is_applied_in_place() -> None:
    found = changed(
        make_file(user_config="{routing: {policy: a}}"),
        make_file(user_config="{routing: {policy: b}, models: {tiny: {}}}"),
    )
    assert effects(found) == {"gateway": Effect.RECONFIGURED, "tiny": Effect.UNCHANGED}
    paths = [change.path for change in of(found, "gateway").changes]
    base = "deployments.gateway.user_config"
    assert paths == [f"{base}.routing.policy", f"{base}.models"]


def test_a_restart_names_what_causes_it_and_not_what_would_not() -> None:
    found = changed(
        make_file(user_config="{routing: {policy: a}}"),
        make_file(gateway_args="{port: 9000}", user_config="{routing: {policy: b}}"),
    )
    (change,) = of(found, "gateway").changes
    assert (change.path, change.old) == ("args", NOTHING)


def test_a_default_that_is_spelled_out_restarts_as_serve_does() -> None:
    found = changed(make_file(gateway_args="{}"), make_file(gateway_args="{port: 8000}"))
    assert effects(found)["gateway"] is Effect.RESTARTED
    # Serve hashes the JSON of the arguments, where 1 and 1.0 differ.
    one, other = "{keep_alive_s: 1}", "{keep_alive_s: 1.0}"
    found = changed(make_file(gateway_args=one), make_file(gateway_args=other))
    assert effects(found)["gateway"] is Effect.RESTARTED


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        ("{}", "{env_vars: {A: b}}", Effect.RESTARTED),
        ("{env_vars: {A: b}}", "{env_vars: {A: b}}", Effect.UNCHANGED),
    ],
)
def test_a_runtime_environment_restarts(old: str, new: str, effect: Effect) -> None:
    files = [make_file(group=f"{GROUP.rstrip()}\n  runtime_env: {env}\n") for env in (old, new)]
    assert effects(changed(*files))["tiny"] is effect


@pytest.mark.parametrize(
    ("option", "effect"),
    [
        ("ray_actor_options: {num_cpus: 1}", Effect.RESTARTED),
        ("health_check_period_s: 2", Effect.RECONFIGURED),
    ],
)
def test_deployment_options_restart_or_not_as_serve_has_it(option: str, effect: Effect) -> None:
    new = make_file(gateway=f"{GATEWAY.rstrip()}\n  deployments: [{{name: gateway, {option}}}]\n")
    assert effects(changed(make_file(), new))["gateway"] is effect


def test_applications_come_and_go_and_the_deletion_is_said() -> None:
    second = GROUP.replace("name: tiny", "name: second")
    found = changed(make_file(more=OTHER), make_file(more=second))
    assert effects(found) == {
        "gateway": Effect.UNCHANGED,
        "tiny": Effect.UNCHANGED,
        "second": Effect.ADDED,
        "other": Effect.REMOVED,
    }
    assert "serve deploy FILE" in of(found, "other").note


def test_applications_of_others_are_compared_too() -> None:
    found = changed(make_file(more=OTHER), make_file(more=OTHER.replace("x: 1", "x: 2")))
    assert effects(found)["other"] is Effect.RESTARTED
    found = changed(
        make_file(more=OTHER), make_file(more=OTHER.replace("replicas: 1", "replicas: 2"))
    )
    assert effects(found)["other"] is Effect.RECONFIGURED


def test_another_place_of_the_proxy_concerns_all_of_serve() -> None:
    served = GATEWAY.replace("null", "/")
    new = make_file(
        top="proxy_location: HeadOnly",
        gateway=served,
        gateway_args="{listen: serve, auth: {keys: true}}",
    )
    found = changed(make_file(), new)
    assert [(change.path, change.new) for change in found.serve] == [("proxy_location", "HeadOnly")]
    assert of(found, "gateway").note == "new gateways start before old ones stop"


def test_the_logging_of_serve_restarts_nothing() -> None:
    new = make_file(top="proxy_location: Disabled\nlogging_config: {log_level: DEBUG}")
    assert changed(make_file(), new).serve == ()
