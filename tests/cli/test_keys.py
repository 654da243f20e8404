"""`keys`, `tenants` and `usage`: the store from the command line."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aibrix_ray.cli import app
from aibrix_ray.tenants import Store, store_url
from aibrix_ray.tenants.records import UsageCounts, UsageKey
from tests.config.files import make_file

KEY = re.compile(r"sk-[A-Za-z0-9_-]{43}")


@pytest.fixture(autouse=True)
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment's store; nothing of the user's own is touched."""
    found = f"sqlite:///{tmp_path}/keys.db"
    monkeypatch.setenv("AIBRIX_RAY_STORE", found)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(store_url(url))
    yield made
    made.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def ok(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def listed(command: str = "keys") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok(command, "list", "--json"))
    return found


# keys


def test_a_new_installation_needs_one_command_for_a_key() -> None:
    result = run("keys", "create")
    assert result.exit_code == 0
    assert KEY.fullmatch(result.stdout.strip())  # and nothing else: KEY=$(...)
    assert "shown this once" in result.stderr
    (key,) = listed()
    assert (key["tenant"], key["role"], key["state"]) == ("default", "user", "active")
    assert result.stdout.strip() not in ok("keys", "list") + json.dumps(listed())


def test_a_key_carries_what_the_flags_say() -> None:
    ok("keys", "create", "--tenant", "acme", "--create-tenant", "--name", "ci", "--admin",
       "--expires-in", "90d")  # fmt: skip
    (key,) = listed()
    assert (key["tenant"], key["name"], key["role"]) == ("acme", "ci", "admin")
    assert key["expires"] - key["created"] == 90 * 86_400
    ok("keys", "create", "--tenant", "acme", "--create-tenant")  # it is there already
    assert len(listed("tenants")) == 1


def test_a_tenant_that_is_not_there_is_made_only_when_asked_for() -> None:
    result = run("keys", "create", "--tenant", "acme")
    assert result.exit_code == 2
    assert "error: There is no tenant `acme`" in result.stderr
    assert result.stdout == ""


def test_json_has_the_key_and_its_id() -> None:
    made = json.loads(ok("keys", "create", "--json"))
    assert KEY.fullmatch(made["key"])
    assert made["id"] == listed()[0]["id"]


def test_keys_are_revoked_by_id() -> None:
    ids = [json.loads(ok("keys", "create", "--json"))["id"] for _ in range(3)]
    ok("keys", "revoke", *ids[:2])
    assert [key["state"] for key in listed()] == ["revoked", "revoked", "active"]
    assert run("keys", "revoke", "key_0").exit_code == 2


def test_a_rotated_key_ends_after_the_grace() -> None:
    old = json.loads(ok("keys", "create", "--json"))
    before_s = time.time()
    assert KEY.fullmatch(ok("keys", "rotate", old["id"], "--grace", "10m").strip())
    first, second = listed()
    assert first["id"] == old["id"]
    assert int(before_s) + 600 <= first["expires"] <= time.time() + 600
    assert second["expires"] is None
    ok("keys", "rotate", second["id"], "--grace", "0")
    assert [key["state"] for key in listed()] == ["active", "expired", "active"]


def test_keys_are_listed_for_people() -> None:
    key = ok("keys", "create", "--name", "[red]").strip()
    text = ok("keys", "list")
    assert "[red]" in text
    assert f"{key[:8]}…" in text
    assert "active" in text


# tenants


def test_a_tenant_is_made_changed_and_deleted() -> None:
    ok("tenants", "create", "acme", "--rpm", "60", "--tpm", "1000", "--max-concurrent", "4",
       "--model", "a", "--model", "b", "--priority", "high", "--slo-tier", "gold",
       "--weight", "2")  # fmt: skip
    (tenant,) = listed("tenants")
    assert tenant["allowed_models"] == ["a", "b"]
    limits = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
    assert [tenant[name] for name in limits] == [60, 1000, 4]
    assert (tenant["priority"], tenant["slo_tier"], tenant["weight"]) == ("high", "gold", 2.0)
    ok("tenants", "set", "acme", "--rpm", "none", "--model", "none", "--slo-tier", "none")
    (changed,) = listed("tenants")
    assert changed == {
        **tenant,
        "requests_per_minute": None,
        "allowed_models": None,
        "slo_tier": None,
    }
    assert "acme" in ok("tenants", "list")
    ok("keys", "create", "--tenant", "acme")
    result = run("tenants", "delete", "acme")
    assert result.exit_code == 2
    assert "keys that work" in result.stderr
    ok("tenants", "delete", "acme", "--force")
    assert listed("tenants") == []


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("tenants", "create", "a b"), "NAME"),
        (("tenants", "create", "a", "--rpm", "many"), "--rpm"),
        (("tenants", "create", "a", "--rpm", "0"), "--rpm"),
        (("tenants", "create", "a", "--weight", "0"), "--weight"),
        (("tenants", "create", "a", "--priority", "urgent"), "--priority"),
        (("tenants", "set", "a"), "a"),
        (("keys", "create", "--expires-in", "soon"), "--expires-in"),
        (("keys", "create", "--expires-in", "0"), "--expires-in"),
        (("keys", "create", "--tenant", "a b"), "--tenant"),
        (("keys", "rotate", "key_1", "--grace", "-1"), "--grace"),
        (("keys", "rotate", "key_1", "--grace", "1000d"), "--grace"),
        (("keys", "list", "--store", "mysql://a"), "--store"),
        (("usage", "--since", "yesterday"), "--since"),
        (("usage", "--group-by", "user"), "--group-by"),
        (("usage", "--format", "xml"), "--format"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_flag(
    arguments: tuple[str, ...], flag: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {flag}: got ")


# Which store


def test_a_flag_is_stronger_than_the_environment_and_that_than_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(make_file(gateway_args=f"{{auth: {{store: 'sqlite:///{tmp_path}/file.db'}}}}"))

    def made(*flags: str) -> str:
        before = set(tmp_path.rglob("*.db"))
        ok("keys", "create", *flags)
        (new,) = set(tmp_path.rglob("*.db")) - before
        return new.name

    assert made("--config", str(file), "--store", f"sqlite:///{tmp_path}/flag.db") == "flag.db"
    assert made("--config", str(file)) == "keys.db"
    monkeypatch.delenv("AIBRIX_RAY_STORE")
    assert made("--config", str(file)) == "file.db"
    assert made() == "tenants.db"


def test_a_store_that_cannot_be_reached_is_named_without_its_password() -> None:
    result = run("keys", "list", "--store", "postgresql://me:hush@127.0.0.1:1/none")
    assert result.exit_code == 2
    assert "127.0.0.1" in result.stderr
    assert "hush" not in result.stderr


def test_config_show_masks_the_password_of_a_store(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(
        make_file(
            gateway_args="{auth: {store: 'postgresql://me:hu:s@h@db:5/x', limiter: 'redis://r:1/0'}}"
        )
    )
    shown = ok("config", "show", str(file))
    assert "postgresql://me:********@db:5/x" in shown
    assert "redis://r:1/0" in shown


# usage


def test_usage_comes_as_a_table_as_csv_and_as_json(store: Store) -> None:
    hour_s = int(time.time()) // 3600 * 3600
    counts = {
        UsageKey(hour_s, "acme", "k", "m", "lora"): UsageCounts(1, 10, 4, 5),
        UsageKey(hour_s, "acme", "k", "m", ""): UsageCounts(1, 1, 1, 1),
        UsageKey(hour_s - 30 * 86_400, "acme", "k", "m", ""): UsageCounts(7, 7, 7, 7),
    }
    store.usage.add("w", 1, counts)
    rows = json.loads(ok("usage", "--since", "7d", "--format", "json"))
    assert [(row["adapter"], row["requests"]) for row in rows] == [("", 1), ("lora", 1)]
    query = ("usage", "--tenant", "acme", "--model", "m", "--until", "7d", "--group-by", "tenant")
    (row,) = csv.DictReader(io.StringIO(ok(*query, "--format", "csv")))
    assert row["completion_tokens"] == "7"
    table = ok("usage", "--group-by", "model")
    assert re.search(r"m +9 +18 +12 +13", table)
    assert json.loads(ok("usage", "--tenant", "other", "--format", "json")) == []
