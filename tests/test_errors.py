from __future__ import annotations

import inspect
import pickle
import re

import pytest

from aibrix_ray import errors
from aibrix_ray.errors import (
    AibrixRayError,
    ApiError,
    BadRequest,
    ClientError,
    ConfigError,
    DeadlineExceeded,
    Draining,
    EngineError,
    MethodNotAllowed,
    ModelNotFound,
    NoReplica,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    ReplicaFailed,
    ServerError,
    VersionError,
)

TABLE: list[tuple[type[ApiError], int, str, str]] = [
    (BadRequest, 400, "invalid_request", "invalid_request_error"),
    (NotFound, 404, "not_found", "invalid_request_error"),
    (MethodNotAllowed, 405, "method_not_allowed", "invalid_request_error"),
    (errors.PermissionDenied, 403, "permission_denied", "invalid_request_error"),
    (errors.Conflict, 409, "conflict", "invalid_request_error"),
    (PayloadTooLarge, 413, "request_too_large", "invalid_request_error"),
    (Overloaded, 429, "overloaded", "overloaded_error"),
    (ReplicaFailed, 502, "replica_failed", "api_error"),
    (NoReplica, 503, "no_ready_replica", "overloaded_error"),
    (errors.QueueTimeout, 503, "queue_timeout", "overloaded_error"),
    (Draining, 503, "draining", "overloaded_error"),
    (DeadlineExceeded, 504, "deadline_exceeded", "timeout_error"),
]


@pytest.mark.parametrize(("kind", "status", "code", "type_"), TABLE)
def test_each_failure_has_one_status_and_one_code(
    kind: type[ApiError], status: int, code: str, type_: str
) -> None:
    error = kind("what happened", param="p", retry_after_s=2.0)
    assert (error.status, error.code, error.type) == (status, code, type_)
    assert (error.message, str(error), error.param) == ("what happened", "what happened", "p")
    assert issubclass(kind, ClientError if status < 500 else ServerError)


def test_every_error_is_in_the_tree_of_the_docstring_and_nothing_else_is() -> None:
    classes = {
        name
        for name, item in vars(errors).items()
        if inspect.isclass(item) and issubclass(item, AibrixRayError)
    }
    drawn = set(re.findall(r"^ *[│├└─ ]*\b([A-Z]\w+)\b", errors.__doc__ or "", re.MULTILINE))
    assert classes <= drawn
    assert {name for name in drawn if name.endswith(("Error", "Found", "Request"))} <= classes


def test_codes_differ_from_each_other() -> None:
    codes = [kind.code for kind, *_ in TABLE] + [ModelNotFound.code]
    assert len(set(codes)) == len(codes)


EVERY = [
    *[kind("message", param="p", retry_after_s=1.5) for kind, *_ in TABLE],
    ModelNotFound("lama", ["llama"]),
    errors.InvalidApiKey(),
    errors.ModelNotAllowed("llama"),
    errors.StoreUnavailable("the host is down"),
    EngineError(422, "theirs", body={"error": {"message": "theirs"}}),
    ApiError("bland"),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_on_the_other_side_of_a_process(error: ApiError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert (copy.status, copy.code, copy.type) == (error.status, error.code, error.type)


def test_a_config_error_names_field_value_expectation_and_way_out() -> None:
    error = ConfigError(path="a.b[1]", value="x", expected="a number", hint="try 1")
    assert str(error) == "a.b[1]: got 'x', expected a number; try 1"
    assert str(ConfigError(path="a", value=0, expected="1")) == "a: got 0, expected 1"


def test_a_config_error_shortens_a_long_value() -> None:
    text = str(ConfigError(path="a", value="x" * 500, expected="less"))
    assert len(text) < 200
    assert "..." in text


@pytest.mark.parametrize("value", ["x", 7, None, [1, "a"], {"k": "v" * 300}, object])
def test_a_config_error_reads_the_same_on_the_other_side_of_a_process(value: object) -> None:
    error = ConfigError(path="a.b", value=value, expected="less", hint="try")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.path, copy.expected, copy.hint) == ("a.b", "less", "try")
    assert str(pickle.loads(pickle.dumps(copy))) == str(error)


def test_a_version_error_is_one_line_with_the_command_that_fixes_it() -> None:
    error = VersionError(package="vllm", found="0.1", supported="0.32", fix="pip install x")
    assert str(error) == "vllm 0.1 is not supported (supported: 0.32); run: pip install x"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_an_unknown_model_is_answered_as_openai_does_and_names_the_nearest() -> None:
    error = ModelNotFound("lama-8b", ["llama-8b", "qwen"])
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert error.message.startswith("The model `lama-8b` does not exist")
    assert error.message.endswith("Did you mean `llama-8b`?")
    assert "Did you mean" not in ModelNotFound("zz", ["llama-8b"]).message
    assert "Did you mean" not in ModelNotFound("zz", []).message


def test_a_long_model_name_is_shortened() -> None:
    assert len(ModelNotFound("x" * 100_000, ["m"]).message) < 400


def test_a_long_model_name_is_not_compared_at_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def record(word: str, *arguments: object, **options: object) -> list[str]:
        compared.append(len(word))
        return []

    monkeypatch.setattr("difflib.get_close_matches", record)
    ModelNotFound("x" * 1_000_000, ["m"])
    assert all(length <= 1_000 for length in compared)


def test_an_engines_error_has_the_engines_status_and_body() -> None:
    error = EngineError(422, "theirs", body={"a": 1})
    assert (error.status, error.message, error.body) == (422, "theirs", {"a": 1})
