"""The tree of errors.

    AibrixRayError
    ├── ConfigError            the YAML, a flag or an environment variable is wrong; at start-up
    ├── VersionError           an installed engine or Ray is outside of the tested range
    └── ApiError               answered to a client in OpenAI's shape; has a status and a code
        ├── EngineError        an engine's own error, raised by the Python handles
        ├── ClientError        4xx: the request must change before it can succeed
        │   ├── BadRequest             400 invalid_request
        │   ├── ModelNotFound          404 model_not_found
        │   ├── NotFound               404 not_found
        │   ├── MethodNotAllowed       405 method_not_allowed
        │   ├── PayloadTooLarge        413 request_too_large
        │   └── Overloaded             429 overloaded, with Retry-After
        └── ServerError        5xx: the same request may succeed later
            ├── ReplicaFailed          502 replica_failed
            ├── NoReplica              503 no_ready_replica, with Retry-After
            ├── Draining               503 draining, with Retry-After
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
    """Base of what a client is told: `status`, OpenAI's `type` and `code`, the `param` at fault."""

    status = 500
    type = "api_error"
    code = "internal_error"

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
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class PayloadTooLarge(ClientError):
    """The body is larger than the configured limit."""

    status = 413
    code = "request_too_large"


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


class Draining(ServerError):
    """This gateway is shutting down; another one takes the request."""

    status = 503
    type = "overloaded_error"
    code = "draining"


class DeadlineExceeded(ServerError):
    """The request's deadline passed before its answer was complete."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
