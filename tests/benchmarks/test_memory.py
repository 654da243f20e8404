"""The memory result tells the largest deviation after the warm-up, upwards or downwards."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.memory import Look, document


@pytest.mark.parametrize(
    ("sizes_mb", "change"),
    [
        ((10.0, 50.0, 51.0, 50.0), 0.02),
        ((10.0, 50.0, 60.0, 50.0), 0.2),
        ((90.0, 50.0, 45.0, 48.0), 0.1),
    ],
)
def test_the_warm_up_is_left_aside(sizes_mb: Sequence[float], change: float) -> None:
    looks = [Look(100 * (index + 1), size_mb) for index, size_mb in enumerate(sizes_mb)]

    result = document(looks, warm_up=150)

    assert result["rss_change"] == pytest.approx(change)
    assert result["requests"] == 400
