from __future__ import annotations

import pytest

from aibrix_ray.telemetry import LoadWindow, LoadWindows
from aibrix_ray.telemetry.windows import HOLD_S, MAX_WINDOW_S
from tests.telemetry.figures import make_group, make_stats


def group_of(windows: LoadWindows, now_s: float, window_s: float = 30.0) -> LoadWindow:
    (window,) = windows.groups([make_group()], now_s, window_s=window_s)
    return window


def replica_of(windows: LoadWindows, now_s: float, window_s: float = 30.0) -> LoadWindow:
    (window,) = windows.replicas(now_s, window_s=window_s)
    return window


def test_rates_are_growth_over_the_time_seen() -> None:
    windows = LoadWindows()
    for second in range(11):
        windows.observe(
            make_stats(
                sequence=second,
                prompt_tokens_total=5_000 + 100 * second,
                generation_tokens_total=20 * second,
                requests_total=2 * second,
                preemptions_total=second // 5,
            ),
            float(second),
        )
    window = replica_of(windows, 10.0)
    assert window.covered_s == 10.0
    assert window.prompt_tokens_per_s == pytest.approx(100)
    assert window.generation_tokens_per_s == pytest.approx(20)
    assert window.requests_per_s == pytest.approx(2)
    assert window.preemptions_per_s == pytest.approx(0.2)


def test_a_window_forgets_what_was_before_it() -> None:
    windows = LoadWindows()
    for second in range(61):
        busy = min(second, 30)
        windows.observe(make_stats(sequence=second, requests_total=10 * busy), float(second))
    assert replica_of(windows, 60.0).requests_per_s == pytest.approx(0)
    assert replica_of(windows, 60.0, 40.0).requests_per_s == pytest.approx(2.5)
    assert replica_of(windows, 60.0, 40.0).covered_s == 40.0


def test_the_first_report_is_a_baseline_and_not_load() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(prompt_tokens_total=10**9, running=7), 0.0)
    window = replica_of(windows, 0.0)
    assert (window.covered_s, window.prompt_tokens_per_s, window.running_mean) == (0, None, None)
    assert window.running == 7
    assert replica_of(windows, 1.0).prompt_tokens_per_s == 0


def test_a_restarted_engine_adds_to_the_rates() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(epoch="a", requests_total=1000), 0.0)
    windows.observe(make_stats(epoch="a", requests_total=1010), 1.0)
    windows.observe(make_stats(epoch="b", requests_total=5), 2.0)
    windows.observe(make_stats(epoch="b", requests_total=9), 3.0)
    window = replica_of(windows, 3.0)
    assert window.requests_per_s == pytest.approx((10 + 5 + 4) / 3)
    assert window.epoch_age_s == 1.0


def test_a_total_that_went_back_is_a_restart() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(requests_total=1000), 0.0)
    windows.observe(make_stats(requests_total=4), 2.0)
    assert replica_of(windows, 2.0).requests_per_s == pytest.approx(2)


def test_what_an_engine_does_not_know_is_never_zero() -> None:
    windows = LoadWindows()
    for second in range(3):
        windows.observe(make_stats(sequence=second), float(second))
    window = replica_of(windows, 2.0)
    assert window.kv_usage_mean is None
    assert window.prefix_hit_rate is None
    assert window.preemptions_per_s is None


def test_a_figure_known_only_for_a_while_is_averaged_over_that_while() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(kv_usage=0.5, prefix_queries_total=10, prefix_hits_total=9), 0.0)
    windows.observe(make_stats(kv_usage=None), 1.0)
    windows.observe(make_stats(kv_usage=None, prefix_queries_total=90, prefix_hits_total=9), 2.0)
    window = replica_of(windows, 2.0)
    assert window.kv_usage_mean == pytest.approx(0.5)
    assert window.prefix_hit_rate is None


def test_levels_are_averaged_over_time_and_not_over_reports() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(running=10, waiting=4), 0.0)
    windows.observe(make_stats(running=0), 1.0)
    for tenth in range(10):
        windows.observe(make_stats(running=0), 1.0 + tenth / 10)
    window = replica_of(windows, 2.0)
    assert window.running_mean == pytest.approx(5)
    assert window.waiting_mean == pytest.approx(2)


def test_the_prefix_hit_rate_is_of_the_window() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(prefix_queries_total=1000, prefix_hits_total=0), 0.0)
    windows.observe(make_stats(prefix_queries_total=1100, prefix_hits_total=75), 1.0)
    assert replica_of(windows, 1.0).prefix_hit_rate == pytest.approx(0.75)


def test_a_group_is_the_sum_of_its_replicas() -> None:
    windows = LoadWindows()
    for second in range(11):
        for name in ("r1", "r2"):
            stats = make_stats(
                name, second, running=3, requests_total=second, kv_usage=0.2, draining=name == "r2"
            )
            windows.observe(stats, float(second))
    window = group_of(windows, 10.0)
    assert (window.replicas, window.draining, window.running) == (2, 1, 6)
    assert window.running_mean == pytest.approx(6)
    assert window.replicas_mean == pytest.approx(2)
    assert window.requests_per_s == pytest.approx(2)
    assert window.kv_usage_mean == pytest.approx(0.2)
    assert window.epoch_age_s is None


def test_a_group_at_zero_replicas_has_a_window_that_knows_nothing() -> None:
    window = group_of(LoadWindows(), 5.0)
    assert (window.model, window.replicas, window.covered_s) == ("m", 0, 0)
    assert window.requests_per_s is None


def test_a_dead_replica_counts_for_what_it_did_and_not_as_load() -> None:
    windows = LoadWindows()
    for second in range(11):
        stats = make_stats(sequence=second, running=4, requests_total=3 * second)
        windows.observe(stats, float(second))
    window = group_of(windows, 30.0)
    assert (window.replicas, window.running) == (0, 0)
    assert window.requests_per_s == pytest.approx(1)
    assert window.running_mean == pytest.approx(4 * (10 + HOLD_S) / 30)
    assert group_of(windows, 41.0).requests_per_s is None


def test_a_pause_in_the_reports_does_not_swell_the_window() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(requests_total=0), 0.0)
    windows.observe(make_stats(sequence=2, requests_total=600), 60.0)
    window = replica_of(windows, 60.0)
    assert window.covered_s == 30.0
    assert window.requests_per_s == pytest.approx(10)


def test_tracks_are_pruned_when_no_window_reaches_them() -> None:
    windows = LoadWindows()
    windows.observe(make_stats(), 0.0)
    windows.prune(MAX_WINDOW_S)
    assert len(windows) == 1
    windows.prune(MAX_WINDOW_S + 1)
    assert len(windows) == 0
