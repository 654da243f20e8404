"""The tree of errors.

    AibrixRayError
    ├── ConfigError            the YAML, a flag or an environment variable is wrong; at start-up
    ├── VersionError           an installed engine or Ray is outside of the tested range
    └── ApiError               answered to a client in OpenAI's shape; has a status and a code
        ├── EngineError        an engine's own error, raised by the Python handles
        ├── ClientError        4xx: the request must change before it can succeed
        │   ├── BadRequest             400 invalid_request
        │   ├── InvalidHttp            400 invalid_http
        │   ├── InvalidApiKey          401 invalid_api_key
        │   ├── PermissionDenied       403 permission_denied
        │   ├── ModelNotAllowed        403 model_not_allowed
        │   ├── ModelNotFound          404 model_not_found
        │   ├── NotFound               404 not_found
        │   ├── MethodNotAllowed       405 method_not_allowed, with Allow
        │   ├── RequestTimeout         408 request_timeout
        │   ├── Conflict               409 conflict
        │   ├── PayloadTooLarge        413 request_too_large
        │   ├── UriTooLong             414 uri_too_long
        │   ├── HeadersTooLarge        431 headers_too_large
        │   ├── ExceedsLimit           400 request_exceeds_limit
        │   ├── RateLimited            429 rate_limit_exceeded, with Retry-After
        │   └── Overloaded             429 overloaded, with Retry-After
        └── ServerError        5xx: the same request may succeed later
            ├── ReplicaFailed          502 replica_failed
            ├── NoReplica              503 no_ready_replica, with Retry-After
            ├── QueueTimeout           503 queue_timeout, with Retry-After
            ├── StoreUnavailable       503 store_unavailable, with Retry-After
            ├── Draining               503 draining, with Retry-After
            ├── TooManyConnections     503 too_many_connections, with Retry-After
            └── DeadlineExceeded       504 deadline_exceeded

An `ApiError` raised anywhere below the gateway reaches the client as it is; any other exception is
logged with its traceback at the rim and answered as a bland 500.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AibrixRayError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(AibrixRayError):
    """A configuration value is wrong: names the field, the value, what was expected and the fix.

    Attributes:
        path: where the value stands, dotted (`applications[1].args.replicas.max`).
        value: what was found there.
        expected: what would have been right.
        hint: the way out, a sentence without a full stop; may be empty.
    """

    def __init__(self, *, path: str, value: object, expected: str, hint: str = "") -> None:
        self.path = path
        self.value = value
        self.expected = expected
        self.hint = hint
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        text = f"{path}: got {shown}, expected {expected}"
        super().__init__(f"{text}; {hint}" if hint else text)

    def __reduce__(self) -> tuple[object, ...]:
        # Serve pickles a builder's error on its way to the driver.
        return _config_error, (self.path, repr(self.value), self.expected, self.hint)


class _Shown:
    """Prints as the text it holds, so that an error that crossed a process reads the same."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _config_error(path: str, shown: str, expected: str, hint: str) -> ConfigError:
    return ConfigError(path=path, value=_Shown(shown), expected=expected, hint=hint)


class VersionError(AibrixRayError):
    """An installed package is outside of the tested range.

    The one line names what was found, what is supported and the command that fixes it.
    """

    def __init__(self, *, package: str, found: str, supported: str, fix: str) -> None:
        self.package = package
        self.found = found
        self.supported = supported
        self.fix = fix
        super().__init__(f"{package} {found} is not supported (supported: {supported}); run: {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        return _version_error, (self.package, self.found, self.supported, self.fix)


def _version_error(package: str, found: str, supported: str, fix: str) -> VersionError:
    return VersionError(package=package, found=found, supported=supported, fix=fix)


class ApiError(AibrixRayError):
    """Base of what a client is told: `status`, OpenAI's `type` and `code`, the `param` at fault.

    `headers` go with the answer, besides `Retry-After`.
    """

    status = 500
    type = "api_error"
    code = "internal_error"
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses processes on the Python handles' path; subclasses differ in their constructors.
        return _api_error, (type(self), self.message, self.__dict__)


def whole_seconds(retry_after_s: float) -> int:
    """Return what `Retry-After` says: whole seconds, and never "at once"."""
    return max(1, round(retry_after_s))


def _api_error(kind: type[ApiError], message: str, state: dict[str, object]) -> ApiError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class EngineError(ApiError):
    """An engine's own error answer, as the Python handles raise it; `body` is its JSON."""

    def __init__(self, status: int, message: str, *, body: object = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class ClientError(ApiError):
    """The request itself has to change."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class BadRequest(ClientError):
    """The body or a header cannot be understood."""


class InvalidHttp(ClientError):
    """What came is not HTTP/1.1, or frames its body in two ways."""

    code = "invalid_http"


class InvalidApiKey(ClientError):
    """No API key, or none that works: unknown, expired and revoked keys are answered alike."""

    status = 401
    code = "invalid_api_key"
    headers = ((b"www-authenticate", b"Bearer"),)

    def __init__(self, message: str = "Incorrect API key provided.") -> None:
        super().__init__(message)


class PermissionDenied(ClientError):
    """The API key is good, and not for this."""

    status = 403
    code = "permission_denied"


class ModelNotAllowed(ClientError):
    """The API key's tenant may not use this model."""

    status = 403
    code = "model_not_allowed"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"Your API key has no access to the model `{_shorten(model)}`.", param="model"
        )


class ModelNotFound(ClientError):
    """No replica group, adapter or alias has this name."""

    status = 404
    code = "model_not_found"

    def __init__(self, model: str, known: Iterable[str]) -> None:
        # Comparing is quadratic in the length, and this runs on the gateway's loop.
        near = difflib.get_close_matches(model, list(known), n=1) if len(model) <= 200 else []
        hint = f" Did you mean `{near[0]}`?" if near else ""
        super().__init__(
            f"The model `{_shorten(model)}` does not exist or you do not have access to it.{hint}",
            param="model",
        )


class NotFound(ClientError):
    """The path is not one of ours."""

    status = 404
    code = "not_found"


class MethodNotAllowed(ClientError):
    """The path exists, the method does not; `allow` lists those that do, for the header."""

    status = 405
    code = "method_not_allowed"

    def __init__(
        self,
        message: str,
        *,
        allow: str = "POST",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.headers = ((b"allow", allow.encode("ascii")),)


class RequestTimeout(ClientError):
    """The client did not send its request in time."""

    status = 408
    code = "request_timeout"


class Conflict(ClientError):
    """What is there already stands in the way; the message says what."""

    status = 409
    code = "conflict"


class PayloadTooLarge(ClientError):
    """The body is larger than the configured limit."""

    status = 413
    code = "request_too_large"


class UriTooLong(ClientError):
    """The target of the request is longer than the configured limit."""

    status = 414
    code = "uri_too_long"


class HeadersTooLarge(ClientError):
    """The headers are larger, or more, than the configured limit."""

    status = 431
    code = "headers_too_large"


class ExceedsLimit(ClientError):
    """The request may use more tokens than the limit allows in a minute; waiting does not help."""

    code = "request_exceeds_limit"


class RateLimited(ClientError):
    """A subject's limit is used up; the same request may be sent again after `retry_after_s`.

    `limit` is what OpenAI has as the error's type, `requests` or `tokens`; `headers` are sent
    besides `Retry-After`.
    """

    status = 429
    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limit: str = "requests",
        retry_after_s: float = 1.0,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.type = limit
        self.headers = headers


class Overloaded(ClientError):
    """The fleet is full; the same request may be sent again after `retry_after_s`."""

    status = 429
    type = "overloaded_error"
    code = "overloaded"


class ServerError(ApiError):
    """Our side failed; the same request may succeed later."""


class ReplicaFailed(ServerError):
    """Every replica that was tried refused, reset or broke its answer."""

    status = 502
    code = "replica_failed"


class NoReplica(ServerError):
    """The model is known and none of its replicas became ready within the waiting limit."""

    status = 503
    type = "overloaded_error"
    code = "no_ready_replica"


class QueueTimeout(ServerError):
    """The fleet was full for as long as a request may wait; come back after `retry_after_s`."""

    status = 503
    type = "overloaded_error"
    code = "queue_timeout"


class StoreUnavailable(ServerError):
    """The store of tenants and keys cannot be reached.

    `reason` is for operators (it may name hosts); clients are told the message only.
    """

    status = 503
    code = "store_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__("The store of API keys cannot be reached.", retry_after_s=2.0)
        self.reason = reason


class Draining(ServerError):
    """This gateway is shutting down; another one takes the request."""

    status = 503
    type = "overloaded_error"
    code = "draining"


class TooManyConnections(ServerError):
    """This gateway has as many client connections open as it may have."""

    status = 503
    type = "overloaded_error"
    code = "too_many_connections"


class DeadlineExceeded(ServerError):
    """The request's deadline passed before its answer was complete."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
