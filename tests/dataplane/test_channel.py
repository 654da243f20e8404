"""The pool of connections to one replica, against a socket that the test holds in its hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aibrix_ray.dataplane import channel
from aibrix_ray.dataplane.channel import Address, ChannelError, Connection, Endpoint
from tests.dataplane.backends import chunk
from tests.dataplane.waiting import eventually, within

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Replica:
    """A listening Unix socket; `accept` gives the blocking socket of a connection."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._accepted: list[socket.socket] = []
        self.endpoint = Endpoint(Address(uds=str(path)))

    async def connect(self, *, fresh: bool = False) -> tuple[Connection, socket.socket]:
        connection = await within(self.endpoint.acquire(fresh=fresh))
        peer, _ = self._listener.accept()
        peer.settimeout(5)
        self._accepted.append(peer)
        return connection, peer

    def close(self) -> None:
        self.endpoint.close()
        for sock in (*self._accepted, self._listener):
            sock.close()


@pytest.fixture
async def replica(socket_dir: Path) -> AsyncIterator[Replica]:
    made = Replica(socket_dir / "r.sock")
    yield made
    made.close()
    await asyncio.sleep(0)


async def answered(connection: Connection, peer: socket.socket, answer: bytes = OK) -> bytes:
    """Carry one exchange; return the answer's body."""
    connection.exchange(REQUEST, b"")
    peer.sendall(answer)
    await within(connection.head())
    body = b""
    while data := await within(connection.read()):
        body += data
    return body


async def test_a_connection_is_used_again_after_a_complete_answer(replica: Replica) -> None:
    connection, peer = await replica.connect()
    for _ in range(3):
        assert await answered(connection, peer) == b"ok"
        assert (connection.status, connection.headers) == (200, [(b"content-length", b"2")])
        connection.release()
        assert await replica.endpoint.acquire() is connection


async def test_a_fresh_connection_can_be_asked_for(replica: Replica) -> None:
    first, peer = await replica.connect()
    await answered(first, peer)
    first.release()
    second, _ = await replica.connect(fresh=True)
    assert second is not first
    second.abort("the test is over")


async def test_a_connection_that_the_replica_closed_while_idle_leaves_the_pool(
    replica: Replica,
) -> None:
    first, peer = await replica.connect()
    await answered(first, peer)
    first.release()
    peer.close()
    await eventually(lambda: not first.usable, "the close is noticed")
    second, _ = await replica.connect()
    assert second is not first
    second.abort("the test is over")


async def test_a_connection_on_which_the_replica_speaks_out_of_turn_is_not_used_again(
    replica: Replica,
) -> None:
    connection, peer = await replica.connect()
    await answered(connection, peer)
    connection.release()
    peer.sendall(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 100\r\n\r\nhalf of it")
    await eventually(lambda: not connection.usable, "it is closed", seconds=0.5)


async def test_a_second_answer_to_one_request_is_nobodys(replica: Replica) -> None:
    connection, peer = await replica.connect()
    assert await answered(connection, peer, OK + OK) == b"ok"
    assert connection.headers == [(b"content-length", b"2")]
    connection.release()
    assert not connection.usable


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_replica_will_close_is_not_used_again(
    replica: Replica, answer: bytes
) -> None:
    connection, peer = await replica.connect()
    assert await answered(connection, peer, answer) == b"ok"
    connection.release()
    assert not connection.usable


async def test_a_connection_released_amid_its_answer_is_closed(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    peer.sendall(STREAM + chunk(b"data: a\n\n"))
    await within(connection.head())
    connection.release()
    await asyncio.sleep(0)
    assert peer.recv(1000) == REQUEST
    assert peer.recv(1000) == b""


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    ],
)
async def test_an_interim_answer_is_dropped(replica: Replica, answer: bytes) -> None:
    connection, peer = await replica.connect()
    assert await answered(connection, peer, answer) == b"ok"
    assert (connection.status, connection.headers) == (200, [(b"content-length", b"2")])
    connection.abort("the test is over")


async def test_a_plain_answer_is_awaited_whole(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    head = asyncio.create_task(connection.head())
    peer.sendall(OK[:-1])
    await eventually(lambda: connection.pending, "all but one byte are here")
    assert not head.done()
    peer.sendall(OK[-1:])
    await within(head)
    assert connection.complete
    connection.abort("the test is over")


async def test_of_a_stream_only_the_first_bytes_are_awaited(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    head = asyncio.create_task(connection.head())
    peer.sendall(STREAM)
    await eventually(lambda: connection.head_complete, "the head is here")
    assert not head.done()
    peer.sendall(chunk(b"d"))
    await within(head)
    assert await connection.read() == b"d"
    connection.abort("the test is over")


async def test_what_has_arrived_is_read_at_once(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    peer.sendall(STREAM + chunk(b"a") + chunk(b"b"))
    await within(connection.head())
    assert await connection.read() == b"ab"
    assert not connection.pending
    peer.sendall(b"0\r\n\r\n")
    assert await within(connection.read()) == b""
    connection.release()
    assert connection.usable


async def test_reading_pauses_while_too_much_is_held(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    size = 64 * channel.HIGH_WATER_BYTES
    peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
    peer.setblocking(False)
    sent = 0
    loop = asyncio.get_running_loop()
    sending = asyncio.create_task(loop.sock_sendall(peer, bytes(size)))
    await within(connection.head())
    await eventually(lambda: connection._paused, "reading pauses")
    held = connection._buffered
    assert held < 4 * channel.HIGH_WATER_BYTES
    while data := await within(connection.read()):
        sent += len(data)
    assert sent == size
    await within(sending)
    connection.abort("the test is over")


async def test_once_a_large_plain_answer_has_begun_to_pass_all_that_arrives_passes(
    replica: Replica,
) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    loop = asyncio.get_running_loop()
    peer.setblocking(False)
    begun = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(bytes(300_000))
    sending = asyncio.create_task(loop.sock_sendall(peer, begun))
    await within(connection.head())
    await within(sending)
    received = 0
    while received < 300_000:
        received += len(await asyncio.wait_for(connection.read(), 0.5))
    reading = asyncio.create_task(connection.read())
    await asyncio.sleep(0)
    peer.send(chunk(b"a little more"))
    assert await asyncio.wait_for(reading, 0.5) == b"a little more"


async def test_a_broken_connection_is_a_replicas_fault_only_while_it_is_fresh(
    replica: Replica,
) -> None:
    connection, peer = await replica.connect()
    await answered(connection, peer)
    connection.release()
    connection.exchange(REQUEST, b"")
    peer.close()
    with pytest.raises(ChannelError) as stale:
        await within(connection.head())
    assert not stale.value.fresh
    connection, peer = await replica.connect(fresh=True)
    connection.exchange(REQUEST, b"")
    peer.close()
    with pytest.raises(ChannelError) as fresh:
        await within(connection.head())
    assert fresh.value.fresh


async def test_a_long_body_on_a_stale_connection_breaks_like_a_short_one(replica: Replica) -> None:
    connection, peer = await replica.connect()
    await answered(connection, peer)
    connection.release()
    peer.close()
    connection = await replica.endpoint.acquire()
    connection.exchange(REQUEST, bytes(100_000))
    with pytest.raises(ChannelError) as stale:
        await within(connection.head())
    assert not stale.value.fresh


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no",
        STREAM,
        STREAM + b"5\r\n",
    ],
)
async def test_an_answer_that_breaks_before_it_counts_is_an_error(
    replica: Replica, cut: bytes
) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    peer.sendall(cut)
    peer.close()
    with pytest.raises(ChannelError, match=r"closed by the replica|lost"):
        await within(connection.head())


async def test_what_is_no_http_is_an_error(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    peer.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
    with pytest.raises(ChannelError, match="not HTTP"):
        await within(connection.head())


async def test_a_body_without_a_length_ends_with_the_connection(replica: Replica) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    peer.sendall(b"HTTP/1.0 200 OK\r\n\r\nall of it")
    assert peer.recv(1000) == REQUEST  # what is left unread would make the close a reset
    peer.close()
    await within(connection.head())
    assert await connection.read() == b"all of it"
    assert await connection.read() == b""
    connection.release()
    assert not connection.usable


@pytest.mark.parametrize("how", ["our abort", "a reset"])
async def test_a_body_without_a_length_that_is_cut_is_not_complete(
    replica: Replica, how: str
) -> None:
    connection, peer = await replica.connect()
    connection.exchange(REQUEST, b"")
    peer.sendall(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: a\n\n")
    await within(connection.head())
    await connection.read()
    reading = asyncio.create_task(connection.read())
    await asyncio.sleep(0)
    if how == "our abort":
        connection.abort("deadline passed")
    else:
        peer.close()  # with the request unread
    with pytest.raises(ChannelError):
        await within(reading)


async def test_aborting_wakes_the_reader(replica: Replica) -> None:
    connection, _ = await replica.connect()
    connection.exchange(REQUEST, b"")
    head = asyncio.create_task(connection.head())
    await asyncio.sleep(0)
    connection.abort("the client has gone")
    with pytest.raises(ChannelError, match="the client has gone"):
        await within(head)


async def test_a_replica_that_is_not_there_cannot_be_connected_to(socket_dir: Path) -> None:
    for address in (Address(uds=str(socket_dir / "none")), Address(host="127.0.0.1", port=1)):
        with pytest.raises(ChannelError, match="cannot connect to") as refused:
            await within(Endpoint(address).acquire())
        assert refused.value.fresh


async def test_the_pool_keeps_no_more_than_its_limit(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_IDLE_CONNECTIONS", 1)
    pairs = [await replica.connect() for _ in range(3)]
    for connection, peer in pairs:
        await answered(connection, peer)
    for connection, _ in pairs:
        connection.release()
    assert [connection.usable for connection, _ in pairs] == [True, False, False]


async def test_a_closed_endpoint_lets_answers_under_way_end_and_keeps_nothing(
    replica: Replica,
) -> None:
    idle, peer = await replica.connect()
    await answered(idle, peer)
    busy, busy_peer = await replica.connect()
    idle.release()
    busy.exchange(REQUEST, b"")
    replica.endpoint.close()
    assert not idle.usable
    busy_peer.sendall(OK)
    await within(busy.head())
    assert await busy.read() == b"ok"
    busy.release()
    assert not busy.usable


async def test_a_body_in_pieces_waits_for_a_slow_replica(replica: Replica) -> None:
    connection, peer = await replica.connect()
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield bytes(256 * 1024)

    sending = asyncio.create_task(connection.exchange_chunks(REQUEST, pieces()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert taken < 20, "the file is read no faster than the replica reads"
    assert not sending.done()
    connection.abort("the test is over")
    await asyncio.gather(sending, return_exceptions=True)
    with pytest.raises(ChannelError, match="the test is over"):
        await within(connection.head())
    peer.close()
