"""Queries by kind of metric; a real Prometheus answers them in tests/integration."""

from cluster.dashboards.definition import DASHBOARDS, REWARD
from cluster.dashboards.panel import Curve, Panel
from cluster.dashboards.promql import GRAFANA, PLAIN, STANDS_AT_0, grown, over_time, queries
from cluster.metrics.table import BY_KEY


def panel(*curves: Curve) -> Panel:
    return Panel(title="t", unit="", curves=curves)


def asked(curve: Curve, scope=PLAIN) -> str:
    return queries(panel(curve), scope)[0].expr


def test_a_gauge_shows_one_value_for_its_labels_however_many_workers_tell_it():
    assert asked(Curve(key="step", label="steps")) == "max by (run) (ray_attune_step)"
    engines = Curve(key="engine/running", label="{actor}")
    assert asked(engines) == "max by (run, actor) (ray_attune_engine_running)"


def test_a_label_that_is_fixed_is_matched_and_not_kept_apart():
    curve = Curve(key="reward/{reward}/mean", label="{reward}", where=(("of", "gold"),))
    assert asked(curve) == 'max by (run, reward) (ray_attune_reward_mean{of="gold"})'


def test_a_counter_shows_growth_or_how_high_it_stands():
    tokens = Curve(key="engine/tokens", label="{actor}")
    assert asked(tokens) == "sum by (run, actor) (rate(ray_attune_engine_tokens_total[1m]))"
    events = Curve(key="events/{kind}", label="{kind}", is_total=True)
    assert asked(events) == "sum by (run, kind) (ray_attune_events_total)"


def test_a_counter_that_never_counted_stands_at_0_where_its_process_tells_of_itself():
    restarts = Curve(key="fleet/restarts", label="replaced", is_total=True)
    assert asked(restarts) == (
        "sum by (run) (ray_attune_fleet_restarts_total) or "
        "0 * max by (run) (ray_attune_fleet_wanted)"
    )
    for counter, gauge in STANDS_AT_0.items():
        assert (BY_KEY[counter].kind, BY_KEY[gauge].kind) == ("counter", "gauge")
        assert BY_KEY[counter].labels == BY_KEY[gauge].labels


def test_a_histogram_shows_its_buckets_of_all_runs_together():
    curve = Curve(key="staleness/replies/{age}", label="{age}")
    (query,) = queries(panel(curve), PLAIN)
    assert query.expr == "sum by (le) (increase(ray_attune_staleness_replies_bucket[1m]))"
    assert query.legend == "{{le}}"


def test_dashboards_ask_for_what_is_chosen_and_rates_fit_the_scrape():
    tokens = Curve(key="engine/tokens", label="{actor}")
    assert asked(tokens, GRAFANA) == (
        'sum by (run, actor) (rate(ray_attune_engine_tokens_total{SessionName=~"$SessionName", '
        'run=~"$run"}[$__rate_interval]))'
    )


def test_legends_name_labels_and_the_run():
    (query,) = queries(panel(Curve(key="engine/running", label="{actor} at work")), PLAIN)
    assert query.legend == "{{actor}} at work · {{run}}"


def test_a_range_is_shaded_where_one_run_is_shown():
    value, low, high, _ = queries(REWARD, PLAIN)
    assert value.expr == "max by (run) (ray_attune_reward_total_mean)"
    assert (value.edge, low.edge, high.edge) == ("", "low", "high")
    assert low.expr == (
        "max(ray_attune_reward_total_p10) and on () "
        "count(count by (run) (ray_attune_reward_total_p10)) == 1"
    )
    assert "{{" not in low.legend + high.legend  # Grafana fills between two names


def test_growth_of_a_rare_counter_counts_what_it_began_with():
    query = grown("events/{kind}", "30m", where=(("kind", "learner_failure"),), zero="step")
    failures = 'ray_attune_events_total{kind="learner_failure"}'
    nothing = "0 * max by (run, SessionName) (ray_attune_step)"
    now = f"sum by (run, SessionName) ({failures})"
    assert query == (
        f"({now} or {nothing}) - "
        f"(sum by (run, SessionName) ({failures} offset 30m) or {nothing} or 0 * {now})"
    )
    itself = grown("events/{kind}", "1m")
    assert "or 0 * sum by (run, kind, SessionName) (ray_attune_events_total)" in itself


def test_a_gauge_over_a_while_is_taken_of_each_worker_apart():
    assert over_time("avg_over_time", "entropy", "5m") == (
        "max by (run) (avg_over_time(ray_attune_entropy[5m]))"
    )


def test_every_panel_asks_for_each_of_its_figures():
    for dashboard in DASHBOARDS:
        for shown in dashboard.panels:
            keys = {query.key for query in queries(shown, PLAIN)}
            assert keys >= {curve.key for curve in shown.curves}, shown.title
