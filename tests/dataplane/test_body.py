"""Request bodies: JSON limits, and forms that are spooled while their model is looked for."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections.abc import Iterable

import pytest

from aibrix_ray.asgi import Headers, Message, Receive
from aibrix_ray.dataplane.body import ClientGone, Form, read_form, read_json
from aibrix_ray.errors import BadRequest, PayloadTooLarge
from tests.dataplane.backends import Call, MakeBackend, MakeRawBackend, Peer, chunk
from tests.dataplane.clients import head
from tests.dataplane.forms import BOUNDARY, CONTENT_TYPE, TRANSCRIBE, field, form
from tests.dataplane.gateways import MakeGateway

MEGABYTE = 1024 * 1024
HEADERS: Headers = [(b"content-type", CONTENT_TYPE.encode())]


def receiving(pieces: Iterable[bytes], *, then_leave: bool = False) -> Receive:
    """Return an ASGI `receive` that hands out pieces of a body."""

    def messages() -> Iterable[Message]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        if not then_leave:
            yield {"type": "http.request", "body": b"", "more_body": False}
        while True:
            yield {"type": "http.disconnect"}

    source = iter(messages())

    async def receive() -> Message:
        return next(source)

    return receive


async def parse(*pieces: bytes, max_bytes: int = 100 * MEGABYTE) -> Form:
    return await read_form(receiving(pieces), HEADERS, max_bytes=max_bytes)


def content(parsed: Form) -> bytes:
    return b"".join(parsed.chunks())


# JSON


async def test_a_json_body_is_what_has_arrived_in_order() -> None:
    assert await read_json(receiving([b"{", b"", b"}"]), max_bytes=2) == b"{}"
    assert await read_json(receiving([]), max_bytes=2) == b""


async def test_a_json_body_may_have_exactly_the_largest_size() -> None:
    assert await read_json(receiving([b"x" * 10]), max_bytes=10) == b"x" * 10
    for pieces in ([b"x" * 11], [b"x" * 10, b"x"], [b"x"] * 11):
        with pytest.raises(PayloadTooLarge, match="10 bytes"):
            await read_json(receiving(pieces), max_bytes=10)


async def test_a_client_that_leaves_while_sending_is_gone() -> None:
    for pieces in ([], [b"{"], [b"x" * 20]):
        with pytest.raises(ClientGone):
            await read_json(receiving(pieces, then_leave=True), max_bytes=10)
        with pytest.raises((ClientGone, BadRequest)):
            await read_form(receiving(pieces, then_leave=True), HEADERS, max_bytes=10)


async def test_a_body_that_is_too_large_is_read_on_without_being_kept() -> None:
    pieces = itertools.repeat(bytes(MEGABYTE), 64)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            await read_json(receiving(pieces), max_bytes=MEGABYTE)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()


async def test_a_body_without_end_is_not_read_for_ever() -> None:
    endless = itertools.repeat(bytes(MEGABYTE))
    with pytest.raises(PayloadTooLarge):
        await read_json(receiving(endless), max_bytes=MEGABYTE)
    endless_form = itertools.chain([field("file", b"")[:-2]], itertools.repeat(bytes(MEGABYTE)))
    with pytest.raises(PayloadTooLarge):
        await read_form(receiving(endless_form), HEADERS, max_bytes=1024)


# Forms

FILE = field("file", b"\x00\xff--\r\n--" + BOUNDARY[:-1].encode() + b"\r\n", filename="model")
BODIES = {
    "before the file": form(field("model", b"whisper"), FILE),
    "after the file": form(FILE, field("temperature", b"0"), field("model", b"whisper")),
    "with a preamble of line breaks": b"\r\n" + form(field("model", b"whisper"), FILE),
    "between fields that look like it": form(
        field("models", b"x"), field("x", b'name="model"\r\n\r\nfalse'), field("model", b"whisper")
    ),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_the_model_is_found_wherever_it_stands(body: bytes) -> None:
    parsed = await parse(body)
    assert parsed.model == "whisper"
    assert content(parsed) == body
    assert len(parsed) == len(body)
    parsed.set_model("a-much-longer-name")
    replaced = body.replace(b"\r\nwhisper\r\n", b"\r\na-much-longer-name\r\n")
    assert content(parsed) == replaced
    assert len(parsed) == len(replaced)
    parsed.close()


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_it_does_not_matter_where_packets_split_a_form(body: bytes) -> None:
    for cut in range(len(body) + 1):
        parsed = await parse(body[:cut], body[cut:])
        assert (parsed.model, content(parsed)) == ("whisper", body), cut
        parsed.set_model("w")
        assert content(parsed) == body.replace(b"\r\nwhisper\r\n", b"\r\nw\r\n"), cut
        parsed.close()
    parsed = await parse(*(body[i : i + 1] for i in range(len(body))))
    assert (parsed.model, content(parsed)) == ("whisper", body)
    parsed.close()


async def test_a_form_can_be_read_again_from_its_start() -> None:
    parsed = await parse(form(field("model", b"m"), FILE))
    chunks = parsed.chunks()
    next(chunks)
    assert content(parsed) == content(parsed)
    parsed.close()


async def test_a_form_without_a_model_names_none() -> None:
    parsed = await parse(form(FILE))
    assert parsed.model is None
    parsed.close()


async def test_a_large_file_is_not_held_in_memory() -> None:
    pieces = [field("file", b"")[:-2], *([bytes(MEGABYTE)] * 20), b"\r\n"]
    tracemalloc.start()
    try:
        parsed = await parse(*pieces, form(field("model", b"m")))
        digest = hashlib.sha256()
        for piece in parsed.chunks():
            digest.update(piece)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert parsed.model == "m"
    whole = b"".join(pieces) + form(field("model", b"m"))
    assert digest.digest() == hashlib.sha256(whole).digest()
    parsed.close()


async def test_a_closed_form_has_no_file_any_more() -> None:
    parsed = await parse(form(FILE))
    parsed.close()
    with pytest.raises(ValueError, match="closed file"):
        content(parsed)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"--other\r\n\r\n\r\n--other--\r\n",
        f"--{BOUNDARY}\r\nno header\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}\r\n: nameless\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}x".encode(),
    ],
)
async def test_a_malformed_form_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="malformed"):
        await parse(body)


@pytest.mark.parametrize(
    "content_type",
    [b"", b"application/json", b"multipart/form-data", b"multipart/mixed; boundary=x"],
)
async def test_what_is_no_form_is_refused(content_type: bytes) -> None:
    headers = [(b"content-type", content_type)]
    with pytest.raises(BadRequest, match="multipart/form-data"):
        await read_form(receiving([form(FILE)]), headers, max_bytes=MEGABYTE)


async def test_a_form_that_is_too_large_is_refused() -> None:
    body = form(field("model", b"m"), FILE)
    (await parse(body, max_bytes=len(body))).close()
    with pytest.raises(PayloadTooLarge):
        await parse(body, max_bytes=len(body) - 1)


async def test_a_models_name_has_a_largest_length() -> None:
    (await parse(form(field("model", b"x" * 1024)))).close()
    with pytest.raises(BadRequest, match="too long"):
        await parse(form(field("model", b"x" * 1025)))


async def test_a_models_name_that_is_too_long_is_said_to_be_the_parameter_at_fault() -> None:
    with pytest.raises(BadRequest, match=r"^`model` is too long") as refused:
        await parse(form(field("model", b"x" * 1025)))
    assert refused.value.param == "model"


async def test_a_quoted_boundary_is_understood() -> None:
    headers = [(b"content-type", f'multipart/form-data; boundary="{BOUNDARY}"'.encode())]
    body = form(field("model", b"m"))
    parsed = await read_form(receiving([body]), headers, max_bytes=MEGABYTE)
    assert parsed.model == "m"
    parsed.close()


# Forms through the gateway


async def test_an_upload_arrives_byte_for_byte(backend: MakeBackend, gateway: MakeGateway) -> None:
    digests = []

    async def handler(call: Call) -> None:
        digests.append(hashlib.sha256(call.body).digest())
        await call.answer(b'{"text": "hello"}')

    replica = await backend(handler)
    running = await gateway([replica])
    body = form(field("file", bytes(range(256)) * (20 * MEGABYTE // 256)), field("model", b"m"))
    answer = await running.http.post(
        TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE}
    )
    assert answer.json() == {"text": "hello"}
    assert digests == [hashlib.sha256(body).digest()]
    assert replica.calls[0].header(b"content-type") == CONTENT_TYPE.encode()
    assert replica.calls[0].header(b"content-length") == str(len(body)).encode()


async def test_an_alias_in_a_form_is_replaced_and_nothing_else(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    running = await gateway([replica], aliases=("whisper-1", "w"))
    for alias in (b"whisper-1", b"w"):
        body = form(FILE, field("model", alias), field("prompt", alias))
        answer = await running.http.post(
            TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE}
        )
        expected = form(FILE, field("model", b"m"), field("prompt", alias))
        assert answer.content == replica.calls[-1].body == expected


async def test_a_chunked_upload_of_a_form_is_understood(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    client = await (await gateway([replica])).connect()
    body = form(field("model", b"m"), FILE)
    client.send(
        head("POST", TRANSCRIBE, "transfer-encoding: chunked", f"content-type: {CONTENT_TYPE}")
    )
    for start in range(0, len(body), 7):
        client.send(chunk(body[start : start + 7]))
    client.send(b"0\r\n\r\n")
    assert (await client.answer()).body == body


async def test_a_retry_sends_the_form_again(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def die(peer: Peer) -> None:
        await peer.request()
        peer.close()

    replica = await backend()
    running = await gateway([await raw_backend(die), replica], aliases=("w",))
    body = form(field("file", bytes(3 * MEGABYTE)), field("model", b"w"))
    for _ in range(2):
        answer = await running.http.post(
            TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE}
        )
        assert answer.content == form(field("file", bytes(3 * MEGABYTE)), field("model", b"m"))
    assert running.retries == 1


async def test_a_replica_that_dies_during_an_upload_costs_one_attempt(
    raw_backend: MakeRawBackend, backend: MakeBackend, gateway: MakeGateway
) -> None:
    async def die(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reset()

    running = await gateway([await raw_backend(die, tcp=True), await backend()])
    running.tolerate("the handler is closed")
    body = form(field("model", b"m"), field("file", bytes(8 * MEGABYTE)))
    for _ in range(2):
        answer = await running.http.post(
            TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE}
        )
        assert answer.content == body
    assert running.retries == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (form(field("model", b"unknown")), 404, "model_not_found"),
        (form(field("model", b"x" * 2000)), 400, "invalid_request"),
        (b"not a form", 400, "invalid_request"),
    ],
)
async def test_a_form_that_cannot_be_served_is_refused_like_json(
    gateway: MakeGateway, body: bytes, status: int, code: str
) -> None:
    client = await (await gateway([])).connect()
    client.post(body, TRANSCRIBE, f"content-type: {CONTENT_TYPE}")
    answer = await client.answer()
    assert (answer.status, answer.error["code"]) == (status, code)


async def test_an_empty_model_in_a_form_does_not_break_the_form(
    backend: MakeBackend, gateway: MakeGateway
) -> None:
    replica = await backend()
    body = form(field("model", b""), FILE)
    answer = await (await gateway([replica])).http.post(
        TRANSCRIBE, content=body, headers={"content-type": CONTENT_TYPE}
    )
    assert answer.status_code == 200
    assert replica.calls[0].body in (body, form(field("model", b"m"), FILE))


async def test_a_model_twice_in_a_form_is_the_same_for_the_gateway_and_for_an_engine() -> None:
    try:
        parsed = await parse(form(field("model", b"allowed"), field("model", b"other")))
    except BadRequest:
        return  # refusing it is as good
    found = parsed.model
    parsed.close()
    assert found == "other"
