"""Where the time of a request goes in our gateway: a py-spy profile, summed by file.

    pip install -e '.[bench]'
    python benchmarks/where_time_goes.py            # half a minute
    python benchmarks/where_time_goes.py --all-on   # with keys and limits

One gateway before two mock backends under wrk at 64 connections; py-spy samples the thread that
works 500 times a second, only while it runs. A sample belongs to the innermost Python function, so
what C code does for it (a socket's write, a decode) is its own, and what the event loop does by
itself (polling, reading) is uvloop's. CPU a request is measured in a run without py-spy before.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

# Run as a script, Python looks for modules in this folder; ours are found from its parent.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import OURS, OURS_ALL_ON
from benchmarks.mock_systems import Launch, Site, gateways
from benchmarks.mocks import PATH, READY_TIMEOUT_S, check_answers, request_body, start_mock
from benchmarks.processes import NotMeasured, Service, free_port
from benchmarks.wrk import run_wrk

_CONNECTIONS = 64
_WARM_UP_S = 2.0
_MEASURED_S = 3.0
_SAMPLES_PER_S = 500
_SHOWN = 16
#: uvloop has no Python frame of its own.
_LOOP = ("asyncio/runners.py", "uvloop: polling, reading")
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*):\d+\)$")
_PACKAGES = re.compile(r"^.*(?:site-packages|lib/python3\.\d+)/")


def main(argv: Sequence[str] | None = None) -> int:
    """Profile both kinds of load and print where the time went; return the exit code."""
    parser = argparse.ArgumentParser(description="A profile of our gateway, summed by file.")
    parser.add_argument("--all-on", action="store_true", help="with keys and limits")
    parser.add_argument("--seconds", type=int, default=8, help="of each profile")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    try:
        _profile(OURS_ALL_ON if args.all_on else OURS, folder, args.seconds)
    except NotMeasured as error:
        print(f"NOT MEASURED: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def self_time(folded: Iterable[str]) -> Counter[tuple[str, str]]:
    """Return the samples of each (file, function) that was the innermost one.

    `folded` are py-spy's raw lines: the stack from the outside in, `;` between, and a count.
    """
    found: Counter[tuple[str, str]] = Counter()
    for line in folded:
        stack, _, count = line.strip().rpartition(" ")
        frame = _FRAME.match(stack.rpartition(";")[2])
        if frame is not None:
            file = _PACKAGES.sub("", frame["file"]).replace(*_LOOP)
            found[file, frame["function"]] += int(count)
    return found


def table(samples: Counter[tuple[str, str]], *, cpu_us: float) -> list[str]:
    """Return lines of a Markdown table: files by their share, with their dearest functions."""
    total = samples.total()
    files: Counter[str] = Counter()
    for (file, _), count in samples.items():
        files[file] += count
    lines = ["| file | share | CPU-us | dearest |", "|---|---|---|---|"]
    for file, count in files.most_common(_SHOWN):
        inside = Counter({name: part for (of, name), part in samples.items() if of == file})
        dearest = ", ".join(f"`{name}` {part / total:.0%}" for name, part in inside.most_common(3))
        share = count / total
        lines.append(f"| {file} | {share:.0%} | {share * cpu_us:.1f} | {dearest} |")
    return lines


def _profile(name: str, folder: Path, seconds: int) -> None:
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise NotMeasured("py-spy is not installed: pip install -e '.[bench]'")
    (system,) = [system for system in gateways() if system.name == name]
    if system.missing is not None:
        raise NotMeasured(system.missing)
    mocks = [start_mock(folder, f"mock-{index}") for index in range(2)]
    try:
        site = Site(free_port(), mocks, folder)
        launch = system.launch(site)
        log = folder / "gateway.log"
        service = Service(name, launch.argv, log=log, env=launch.env, cwd=folder)
        try:
            check = partial(check_answers, site.port, key=launch.key)
            service.wait_ready(check, timeout_s=READY_TIMEOUT_S)
            for kind in ("unary", "stream"):
                _one(spy, service, site, launch, kind=kind, seconds=seconds)
        finally:
            service.stop()
    finally:
        for mock in mocks:
            mock.service.stop()


def _one(
    spy: str, service: Service, site: Site, launch: Launch, *, kind: str, seconds: int
) -> None:
    url = f"http://127.0.0.1:{site.port}{PATH}"
    body = request_body(stream=kind == "stream")
    load = partial(run_wrk, url, body, key=launch.key, connections=_CONNECTIONS)
    load(seconds=_WARM_UP_S)
    before = service.usage()
    seen = load(seconds=_MEASURED_S)
    cpu_us = service.usage().cpu_since(before) / seen.requests * 1e6
    raw = site.folder / f"{kind}.folded"
    pid = max(before.cpu_s, key=lambda pid: before.cpu_s[pid])
    command = [spy, "record", "--format", "raw", "--output", str(raw), "--pid", str(pid)]
    command += ["--duration", str(seconds), "--rate", str(_SAMPLES_PER_S)]
    background = threading.Thread(target=load, kwargs={"seconds": seconds + 2.0})
    background.start()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    background.join()
    if done.returncode:
        raise NotMeasured(f"py-spy failed: {done.stderr[-500:]}")
    print(f"\n{kind}, {_CONNECTIONS} connections: {cpu_us:.1f} CPU-us a request\n")
    print("\n".join(table(self_time(raw.read_text().splitlines()), cpu_us=cpu_us)))


if __name__ == "__main__":
    raise SystemExit(main())
