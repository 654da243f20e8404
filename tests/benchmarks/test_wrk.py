"""What wrk's script prints is read back whole."""

from __future__ import annotations

import pytest

from benchmarks.processes import NotMeasured
from benchmarks.wrk import parse_outcome

_OUTPUT = (
    "Running 33s test\nRequests/sec: 1\n\n"
    'OUTCOME {"duration_us": 2000000, "requests": 100, "bytes": 5000, "p50_us": 150, '
    '"p99_us": 900, "max_us": 1000, "connect": 1, "read": 2, "write": 0, "status": 3, '
    '"timeout": 0}\n'
)


def test_every_kind_of_failure_counts_as_an_error() -> None:
    outcome = parse_outcome(_OUTPUT)

    assert outcome.errors == 6
    assert outcome.per_s == 50.0
    assert outcome.bytes_per_request == 50.0
    assert (outcome.p50_ms, outcome.p99_ms) == (0.15, 0.9)


def test_a_wrk_that_reports_nothing_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="unable to connect"):
        parse_outcome("unable to connect to 127.0.0.1:1\n")
