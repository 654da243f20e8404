"""Request bodies: JSON in memory; multipart on disk beyond a megabyte, its `model` field found.

An uploaded file is never held in memory: it is spooled while the form is parsed as it arrives, so
the request can be routed by its `model` field wherever in the form that stands, and sent again to
another replica.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import IO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from aibrix_ray.asgi import Headers, Receive
from aibrix_ray.errors import BadRequest, PayloadTooLarge

_SPOOL_BYTES = 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_MAX_MODEL_BYTES = 1024
#: After a body that is too large we read on for so much, so that the client, which writes first
#: and reads then, gets to see the answer instead of a reset connection.
_POLITE_BYTES = 256 * 1024 * 1024


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class Form:
    """A multipart body and where in it the value of `model` stands."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115
        self._size = 0
        self._span: tuple[int, int] | None = None
        self._replacement = b""
        self.model: str | None = None

    def __len__(self) -> int:
        if self._span is None or not self._replacement:
            return self._size
        return self._size - (self._span[1] - self._span[0]) + len(self._replacement)

    def write(self, data: bytes) -> None:
        """Append what has arrived."""
        self._file.write(data)
        self._size += len(data)

    def found_model(self, value: bytes, start: int, end: int) -> None:
        """Note the `model` field and its place."""
        self.model = value.decode("utf-8", "replace").strip()
        self._span = (start, end)

    def set_model(self, model: str) -> None:
        """Send another `model` than the one that came (an alias has been resolved)."""
        self._replacement = model.encode()

    def chunks(self) -> Iterator[bytes]:
        """Yield the body from its start."""
        if self._span is None or not self._replacement:
            yield from self._slice(0, self._size)
            return
        yield from self._slice(0, self._span[0])
        yield self._replacement
        yield from self._slice(self._span[1], self._size)

    def close(self) -> None:
        """Delete the spooled file."""
        self._file.close()

    def _slice(self, start: int, end: int) -> Iterator[bytes]:
        self._file.seek(start)
        while start < end:
            data = self._file.read(min(_CHUNK_BYTES, end - start))
            start += len(data)
            yield data


Body = bytes | Form


async def read_json(receive: Receive, *, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        PayloadTooLarge: it is larger than `max_bytes`; it has been read to its end (within reason).
        ClientGone: the client left while sending.
    """
    message = await receive()
    if message["type"] == "http.request" and not message["more_body"]:
        body: bytes = message["body"]
        if len(body) <= max_bytes:
            return body
        raise _too_large(max_bytes)
    if message["type"] != "http.request":
        raise ClientGone
    parts = [message["body"]]
    size = len(parts[0])
    async for data in _rest(receive):
        size += len(data)
        if size <= max_bytes:
            parts.append(data)
        elif size > max_bytes + _POLITE_BYTES:
            break
        else:
            parts.clear()
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(parts)


async def read_form(receive: Receive, headers: Headers, *, max_bytes: int) -> Form:
    """Read a multipart body to its end; the caller closes the form.

    Raises:
        BadRequest: it is not a multipart form.
        PayloadTooLarge, ClientGone: as for `read_json`.
    """
    content_type = next((v for k, v in headers if k == b"content-type"), b"")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise BadRequest("This endpoint takes a `multipart/form-data` body with a boundary")
    form = Form()
    finder = _ModelFinder(form, options[b"boundary"])
    try:
        size = 0
        async for data in _rest(receive):
            size += len(data)
            if size > max_bytes + _POLITE_BYTES:
                break
            if size <= max_bytes:
                finder.feed(data)
        if size > max_bytes:
            raise _too_large(max_bytes)
    except BaseException:
        form.close()
        raise
    return form


class _ModelFinder:
    """Finds the field named `model` while the form streams by."""

    def __init__(self, form: Form, boundary: bytes) -> None:
        self._form = form
        self._base = 0
        self._header = b""
        self._value = b""
        self._name: bytes | None = None
        self._disposition = b""
        self._start = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Spool and parse the next bytes."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise BadRequest(f"The multipart body is malformed: {error}") from error
        self._form.write(data)
        self._base += len(data)

    def _begin(self) -> None:
        self._name, self._value, self._header, self._disposition = None, b"", b"", b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header == b"content-disposition":
            self._disposition += data[start:end]

    def _header_end(self) -> None:
        if self._header == b"content-disposition":
            self._name = parse_options_header(self._disposition)[1].get(b"name")
        self._header = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"model":
            if not self._value:
                self._start = self._base + start
            self._value += data[start:end]
            if len(self._value) > _MAX_MODEL_BYTES:
                raise BadRequest("`model` is too long", param="model")

    def _end(self) -> None:
        if self._name != b"model" or not self._value:
            return
        if self._form.model is not None:
            # Which one an engine would take is its own business; ours must be the same.
            raise BadRequest("`model` stands twice in the form", param="model")
        self._form.found_model(self._value, self._start, self._start + len(self._value))


async def _rest(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        yield message["body"]
        if not message["more_body"]:
            return


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than the limit of {max_bytes} bytes (`max_body_bytes`)"
    )
