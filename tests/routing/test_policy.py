from __future__ import annotations

import pytest

from aibrix_ray.errors import ConfigError
from aibrix_ray.routing import POLICIES, LeastRequest, make_policy
from tests.dataplane.policies import First


def test_a_policy_is_made_by_its_name() -> None:
    assert isinstance(make_policy("least-request", seed=0), LeastRequest)
    assert "least-request" in POLICIES


def test_a_policy_of_the_users_is_made_by_its_import_path() -> None:
    policy = make_policy("tests.dataplane.policies:First", seed=7)
    assert isinstance(policy, First)
    assert policy.seed == 7


def test_an_unknown_policy_is_refused_where_it_stands() -> None:
    with pytest.raises(ConfigError) as refused:
        make_policy("least-requests", seed=0, path="user_config.routing")
    assert refused.value.path == "user_config.routing.policy"
    assert "least-request" in refused.value.expected
    assert "least-request" in refused.value.hint


def test_an_unknown_option_is_refused_where_it_stands() -> None:
    with pytest.raises(ConfigError) as refused:
        make_policy("least-request", seed=0, options={"weight": 2}, path="r")
    assert refused.value.path == "r.options"
    assert refused.value.value == {"weight": 2}
    assert "weight" in refused.value.hint
    assert isinstance(refused.value.__cause__, TypeError)


def test_each_call_makes_a_policy_of_its_own() -> None:
    assert make_policy("least-request", seed=0) is not make_policy("least-request", seed=0)
