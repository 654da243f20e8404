"""The gateways of a node as one: what one of them says is what all of them counted."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aibrix_ray import __version__
from aibrix_ray.dataplane import siblings as module
from aibrix_ray.dataplane.cells import Key
from aibrix_ray.dataplane.metrics import GatewayMetrics
from aibrix_ray.dataplane.siblings import Siblings
from aibrix_ray.pipeline import ModelState
from aibrix_ray.types import Ending, Usage
from tests.dataplane.backends import Call, MakeBackend
from tests.dataplane.clients import RawClient
from tests.dataplane.policies import First
from tests.dataplane.waiting import DEADLINE_S, within

ROOT = Path(__file__).parents[2]
PORT = 8000
COUNTER, GAUGE = Key("c"), Key("g", (), True)

#: One gateway of several on a port, as a Serve replica runs it.
RUN = """
import asyncio, sys
import uvloop
from aibrix_ray.asgi import HttpServer, tcp_socket
from aibrix_ray.config import GatewayArgs, GatewayUserConfig
from aibrix_ray.dataplane import GatewayApp
from aibrix_ray.dataplane.standalone import apply_backends, parse_backend

async def main(name, port, backend):
    app = GatewayApp(GatewayArgs(port=port), GatewayUserConfig(), name=name)
    apply_backends(app, [parse_backend(backend)])
    app.metrics.join("test", port)
    publishing = asyncio.create_task(app.metrics.publish_regularly(0.02))
    await app.start()
    await HttpServer(app, keep_alive_s=60).listen(tcp_socket("127.0.0.1", port, reuse_port=True))
    print("ready", flush=True)
    await publishing

uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def folder(socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of shared memory of a runtime directory that is this test's own."""
    runtime = socket_dir / "r"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("AIBRIX_RAY_RUNTIME_DIR", str(runtime))
    base = module._base()
    yield base
    shutil.rmtree(base, ignore_errors=True)


def total(siblings: Siblings, key: Key = COUNTER) -> float:
    return sum(
        record.values[0]
        for figures in siblings.figures()
        for record in figures.records
        if record.key == key
    )


def die(siblings: Siblings) -> None:
    """Do what the kernel does with the file of a process that was killed."""
    fcntl.flock(siblings._file, fcntl.LOCK_UN)


def files(folder: Path) -> list[str]:
    return sorted(path.suffix or path.name for path in folder.glob("*/*") if path.name != "lock")


# The folder


def test_each_one_says_what_all_of_them_counted() -> None:
    all_of_them = [Siblings("a", PORT) for _ in range(3)]
    for number, each in enumerate(all_of_them, 1):
        each.cells.get(COUNTER)[0] += number
    assert [total(each) for each in all_of_them] == [6.0, 6.0, 6.0]
    all_of_them[1].cells.get(COUNTER)[0] += 10
    assert total(all_of_them[0]) == 16.0


@pytest.mark.parametrize("end", [die, Siblings.leave], ids=["killed", "left"])
def test_what_a_dead_one_counted_stays_and_its_gauges_go(end: object, folder: Path) -> None:
    assert callable(end)
    alive, dead = Siblings("a", PORT), Siblings("a", PORT)
    for each in (alive, dead):
        each.cells.get(COUNTER)[0] = 5.0
        each.cells.get(GAUGE)[0] = 1.0
    assert (total(alive), total(alive, GAUGE)) == (10.0, 2.0)
    end(dead)
    for _ in range(3):  # when it is noticed, and once it has been folded
        assert (total(alive), total(alive, GAUGE)) == (10.0, 1.0)
    assert files(folder) == [".gateway", ".json"]


def test_many_deaths_leave_one_file(folder: Path) -> None:
    alive = Siblings("a", PORT)
    for _ in range(module._REMEMBERED + 20):
        short = Siblings("a", PORT)
        short.cells.get(COUNTER)[0] = 1.0
        die(short)
        total(alive)
    assert total(alive) == module._REMEMBERED + 20
    assert files(folder) == [".gateway", ".json"]


def test_one_that_is_folded_while_it_is_read_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, other, dead = (Siblings("a", PORT) for _ in range(3))
    dead.cells.get(COUNTER)[0] = 5.0
    die(dead)
    read_retained = reader._read_retained

    def after_the_other_one_has_folded() -> object:
        assert total(other) == 5.0
        return read_retained()

    monkeypatch.setattr(reader, "_read_retained", after_the_other_one_has_folded)
    assert total(reader) == 5.0
    assert total(reader) == 5.0


def test_a_fold_that_was_cut_short_counts_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    alive, dead = Siblings("a", PORT), Siblings("a", PORT)
    dead.cells.get(COUNTER)[0] = 5.0
    die(dead)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", _fail)
        assert total(alive) == 5.0
    assert files(folder) == [".gateway", ".gateway", ".json"]
    assert [total(alive), total(alive)] == [5.0, 5.0]
    assert files(folder) == [".gateway", ".json"]


def test_who_comes_to_an_empty_port_begins_at_zero(folder: Path) -> None:
    old = [Siblings("a", PORT) for _ in range(2)]
    for each in old:
        each.cells.get(COUNTER)[0] = 5.0
        die(each)
    new = Siblings("a", PORT)
    assert total(new) == 0.0
    assert files(folder) == [".gateway"]


def test_the_last_one_to_leave_takes_everything_along(folder: Path) -> None:
    first, last = Siblings("a", PORT), Siblings("a", PORT)
    first.cells.get(COUNTER)[0] = 5.0
    first.leave()
    assert total(last) == 5.0
    last.leave()
    assert not folder.exists()


def test_who_waits_while_the_last_one_leaves_finds_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = Siblings("a", PORT)
    flock = fcntl.flock

    def once_the_last_one_has_left(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        last.leave()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", once_the_last_one_has_left)
    new = Siblings("a", PORT)
    new.cells.get(COUNTER)[0] = 5.0
    assert total(Siblings("a", PORT)) == 5.0


@pytest.mark.parametrize(("application", "port"), [("b", PORT), ("a", PORT + 1), ("a/../b", PORT)])
def test_only_those_of_one_application_and_port_are_siblings(application: str, port: int) -> None:
    one, other = Siblings("a", PORT), Siblings(application, port)
    other.cells.get(COUNTER)[0] = 5.0
    assert total(one) == 0.0


def test_without_room_in_shared_memory_only_the_siblings_miss_something(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Siblings("a", PORT), Siblings("a", PORT)
    monkeypatch.setattr(module, "_allocate", _fail)
    one.cells.get(COUNTER)[0] = 5.0
    assert (total(one), total(other)) == (5.0, 0.0)
    assert "siblings will miss some" in caplog.text


def test_strange_files_are_left_out(folder: Path) -> None:
    one = Siblings("a", PORT)
    one.cells.get(COUNTER)[0] = 5.0
    (next(folder.iterdir()) / "x.gateway").write_bytes(b"\xff" * 100)
    (next(folder.iterdir()) / "retained.json").write_bytes(b"[]")
    assert [total(one), total(one)] == [5.0, 5.0]


def _fail(*args: object, **options: object) -> None:
    raise OSError("died here")


# The figures of a gateway


def make_metrics(under_way: int = 0) -> GatewayMetrics:
    return GatewayMetrics({"m": ModelState("m", First(seed=0))}, lambda: under_way)


def samples(text: str) -> dict[str, float]:
    """Return values by series, as the text writes them."""
    return {
        f"{s.name}{sorted(s.labels.items())}": s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_what_was_counted_before_joining_comes_along() -> None:
    metrics = make_metrics()
    metrics.request_ended("m", Ending.FAILED, 502)
    metrics.attempt_ended("m", 0.1, 0.2, Usage(3, 1, 2), streamed=True)
    metrics.tenant_used("t", Usage(3, 1, 2))
    before = samples(metrics.render().decode())
    metrics.join("a", PORT)
    metrics.request_ended("m", Ending.FAILED, 502)
    after = samples(metrics.render().decode())
    changed = {name for name in before if "process" not in name and before[name] != after[name]}
    assert before.keys() == after.keys()
    (failed,) = changed
    assert after[failed] == 2.0
    metrics.leave()


def test_gauges_are_put_together_as_their_definition_says() -> None:
    one, other = make_metrics(under_way=2), make_metrics(under_way=3)
    one.watch("store", lambda: True)
    other.watch("store", lambda: False)
    for metrics in (one, other):
        metrics.join("a", PORT)
    found = samples(one.render().decode())
    assert found["aibrix_ray_in_flight_requests[]"] == 5
    assert found["aibrix_ray_gateways[]"] == 2
    assert found[f"aibrix_ray_build_info[('version', '{__version__}')]"] == 1
    assert found["aibrix_ray_dependency_up[('dependency', 'store')]"] == 0
    alone = samples(one.render(scope="process").decode())
    assert alone["aibrix_ray_in_flight_requests[]"] == 2
    assert alone["aibrix_ray_gateways[]"] == 1
    other.leave()
    assert samples(one.render().decode())["aibrix_ray_in_flight_requests[]"] == 2
    one.leave()


def test_without_shared_memory_a_gateway_tells_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_base", _fail)
    metrics = make_metrics()
    metrics.join("a", PORT)
    metrics.request_ended("m", Ending.FAILED, 502)
    assert b'status="502"} 1.0' in metrics.render()
    metrics.leave()
    assert "this process only" in caplog.text


# Processes


@dataclass
class Node:
    """Two gateway processes on one port."""

    port: int
    processes: dict[str, asyncio.subprocess.Process]

    async def post(self, count: int) -> None:
        """Send requests, each on a connection of its own, so that the kernel spreads them."""
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"connection": "close"},
            trust_env=False,
            timeout=DEADLINE_S,
        ) as http:
            for _ in range(count):
                answer = await http.post("/v1/chat/completions", json={"model": "m"})
                assert answer.status_code == 200

    async def scrape(self, query: str = "") -> dict[str, float]:
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as http:
            answer = await http.get(f"http://127.0.0.1:{self.port}/metrics{query}")
            return samples(answer.text)


@pytest.fixture
async def node(backend: MakeBackend) -> AsyncIterator[Node]:
    async def handler(call: Call) -> None:
        await (call.until_disconnect() if b"hang" in call.body else call.answer())

    replica = await backend(handler)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = {}
    try:
        for name in ("one", "two"):
            processes[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", RUN, name, str(port), f"m=uds:{replica.address.uds}"),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
            )
        for process in processes.values():
            assert process.stdout is not None
            assert await within(process.stdout.readline()) == b"ready\n"
        yield Node(port, processes)
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


def counters(found: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in found.items() if k.split("[")[0].endswith(("_total", "_bucket"))}


def requests(found: dict[str, float]) -> float:
    return sum(v for k, v in found.items() if k.startswith("aibrix_ray_requests_total"))


async def test_u59_counters_of_several_gateways_only_rise_and_add_up_to_what_was_sent(
    node: Node,
) -> None:
    before: dict[str, float] = {}
    answered_by: dict[str, float] = {}
    for scrape in range(1, 21):
        if scrape == 11:
            node.processes["one"].send_signal(signal.SIGKILL)
            await within(node.processes["one"].wait())
        await node.post(50)
        found = await node.scrape()
        assert requests(found) == 50 * scrape
        fallen = {k for k, v in before.items() if counters(found).get(k, -1.0) < v}
        assert not fallen
        before = counters(found)
        if scrape == 10:
            answered_by = await node.scrape("?scope=process")
    assert requests(before) == 1000
    assert 0 < requests(answered_by) < 500, "both gateways answered"


async def test_u59_gauges_of_a_killed_gateway_disappear(node: Node) -> None:
    client = await RawClient.open(node.port)
    client.get("/metrics?scope=process")
    victim = (await within(client.answer())).header("gateway")
    client.post({"model": "m", "x": "hang"})
    in_flight, gateways = "aibrix_ray_in_flight_requests[]", "aibrix_ray_gateways[]"

    async def until(expected: tuple[float, float]) -> None:
        while True:
            found = await node.scrape()
            if (found[in_flight], found[gateways]) == expected:
                return

    await within(until((1.0, 2.0)))
    assert victim is not None
    node.processes[victim].kill()
    await within(node.processes[victim].wait())
    found = await node.scrape()
    assert (found[in_flight], found[gateways]) == (0.0, 1.0)
    assert found["aibrix_ray_ready_replicas[('model', 'm')]"] == 1
    client.leave()
