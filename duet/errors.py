"""The error tree that both services share, and its form on the wire.

    DuetError
    ├── InvalidRequest (400)       a parameter is wrong; names it
    │   ├── ContextTooLong (400)
    │   ├── PayloadTooLarge (413)
    │   ├── UnsupportedEncoding (415)  the body's Content-Encoding
    │   ├── HeadTooLarge (431)         the request line or its headers
    │   └── BodyStopped (408)          the rest of the request did not come in time
    ├── Unauthorized (401)
    ├── ForbiddenHost (403)
    ├── ForbiddenOrigin (403)      a web page that may not call us
    ├── NotFound (404)
    │   └── ModelNotFound (404)
    ├── MethodNotAllowed (405)
    ├── Conflict (409)
    ├── Busy (429)                 a bounded queue is full; says when to come back
    ├── Unavailable (503)          a worker died or a model cannot be loaded now; says when to come back
    │   ├── ModelUnusable (503)    something is wrong in the model's folder; names the file
    │   ├── WorkerLost (503)
    │   └── MemoryFull (503)       others hold the memory; says which, and when to come back
    ├── ModelTooLarge (507)        it never fits on this machine; says what would help
    ├── DiskFull (507)             what was sent cannot be kept on disk
    └── DeadlineExceeded (504)     the caller's own deadline passed
    Anything else is Internal (500): a fault of ours, logged with its traceback, never shown.

Every error is raised where its cause is known and translated once, in `duet.http.errors`, into OpenAI's envelope
(`{"error": {"message", "type", "param", "code"}}`, https://platform.openai.com/docs/guides/error-codes), with `retry_after`
where trying again can help.
"""

from __future__ import annotations


class DuetError(Exception):
    """Root. `status` is the HTTP status, `kind` OpenAI's error type, `code` a stable machine-readable name.

    `usual_retry_seconds` is when to try again if the place that raises it gives no time; None: trying again does not help."""

    status: int = 500
    kind: str = "server_error"
    code: str = "internal_error"
    usual_retry_seconds: int | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = self.usual_retry_seconds if retry_after_seconds is None else retry_after_seconds


class Internal(DuetError):
    """A fault of ours. The message names no detail; the log has the traceback."""


class InvalidRequest(DuetError):
    status, kind, code = 400, "invalid_request_error", "invalid_value"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class PayloadTooLarge(InvalidRequest):
    status, code = 413, "payload_too_large"


class UnsupportedEncoding(InvalidRequest):
    status, code = 415, "unsupported_encoding"


class HeadTooLarge(InvalidRequest):
    status, code = 431, "head_too_large"


class BodyStopped(InvalidRequest):
    status, code = 408, "request_timeout"


class Unauthorized(DuetError):
    status, kind, code = 401, "authentication_error", "invalid_api_key"


class ForbiddenHost(DuetError):
    status, kind, code = 403, "permission_error", "forbidden_host"


class ForbiddenOrigin(DuetError):
    status, kind, code = 403, "permission_error", "forbidden_origin"


class NotFound(DuetError):
    status, kind, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(DuetError):
    status, kind, code = 405, "invalid_request_error", "method_not_allowed"


class Conflict(DuetError):
    status, kind, code = 409, "invalid_request_error", "conflict"


class Busy(DuetError):
    status, kind, code = 429, "rate_limit_error", "server_busy"
    usual_retry_seconds = 5


class Unavailable(DuetError):
    status, kind, code = 503, "server_error", "unavailable"
    usual_retry_seconds: int | None = 5


class ModelUnusable(Unavailable):
    """The model's folder must be mended first. It is no fault of who asks, and trying again does not help."""

    code = "model_unusable"
    usual_retry_seconds = None


class WorkerLost(Unavailable):
    """The process that ran the request ended before it answered. A new one starts; the request may be repeated."""

    code = "worker_lost"
    usual_retry_seconds = 1


class MemoryFull(Unavailable):
    """The request needs more memory than others leave now. The message says what holds the memory, and why that stays."""

    code = "memory_full"


class ModelTooLarge(DuetError):
    """The model would not fit even if nothing else were loaded: trying again does not help."""

    status, kind, code = 507, "server_error", "model_too_large"


class DiskFull(DuetError):
    """The disk of `$DUET_HOME` took no more. Nothing of the request is left on it."""

    status, kind, code = 507, "server_error", "disk_full"


class DeadlineExceeded(DuetError):
    status, kind, code = 504, "server_error", "deadline_exceeded"


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a task group: the other tasks were cancelled because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _tree(root: type[DuetError]) -> dict[str, type[DuetError]]:
    """Classes by their code. A subclass without a code of its own is its parent on the wire."""
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def from_code(
    code: str, message: str, *, param: str | None = None, retry_after_seconds: int | None = None
) -> DuetError:
    """The error that a worker process sent as `code`; an unknown code gives an `Internal`."""
    return _tree(DuetError).get(code, Internal)(message, param=param, retry_after_seconds=retry_after_seconds)
