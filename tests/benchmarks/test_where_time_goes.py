"""A profile is summed by the innermost function, under the file's name in its package."""

from __future__ import annotations

from benchmarks.where_time_goes import self_time, table

_FOLDED = [
    "run (/x/lib/python3.11/site-packages/uvloop/__init__.py:92);"
    "App.call (aibrix_ray/dataplane/app.py:10);App.read (aibrix_ray/dataplane/app.py:20) 30",
    "run (/x/lib/python3.11/site-packages/uvloop/__init__.py:92);"
    "App.call (aibrix_ray/dataplane/app.py:11) 10",
    "Runner.run (/x/lib/python3.11/asyncio/runners.py:118) 60",
    "call (/x/lib/python3.11/site-packages/other/part.py:1) 0",
    "",
]


def test_a_sample_belongs_to_the_innermost_function() -> None:
    samples = self_time(_FOLDED)

    assert samples["aibrix_ray/dataplane/app.py", "App.read"] == 30
    assert samples["aibrix_ray/dataplane/app.py", "App.call"] == 10
    assert samples["uvloop: polling, reading", "Runner.run"] == 60
    assert ("other/part.py", "call") in samples


def test_the_table_tells_shares_and_what_they_cost() -> None:
    lines = table(self_time(_FOLDED), cpu_us=50.0)

    assert lines[2] == "| uvloop: polling, reading | 60% | 30.0 | `Runner.run` 60% |"
    assert lines[3].startswith("| aibrix_ray/dataplane/app.py | 40% | 20.0 | `App.read` 30%")
