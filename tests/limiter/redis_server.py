"""A Redis of a test run's own: in a temporary folder, on a Unix socket, no port."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import redis

PROGRAM = shutil.which("redis-server")


class RedisServer:
    """One server. `stop` and `start` again as often as a test wants; it keeps nothing."""

    def __init__(self) -> None:
        # Short: the path of a Unix socket has at most 107 bytes.
        self._root = Path(tempfile.mkdtemp(prefix="redis-"))
        self.url = f"unix://{self._root}/socket"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        assert PROGRAM is not None
        command = [PROGRAM, "--port", "0", "--unixsocket", f"{self._root}/socket", "--save", ""]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._root)], stdout=subprocess.DEVNULL
        )
        with redis.Redis.from_url(self.url) as client:
            until_s = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert time.monotonic() < until_s, "redis-server does not answer"
                    time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def clear(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._root)
