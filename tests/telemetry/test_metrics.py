from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from shipper.telemetry.metrics import MAX_SERIES, METRICS, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_every_count_lands_under_its_name_and_labels(metrics: Metrics) -> None:
    metrics.lines_read("docker", 3, 120)
    metrics.lines_read("docker", 2, 80)
    metrics.acked("mysql", 4)
    metrics.retried("mysql", "2006")
    metrics.retried("mysql", "")
    metrics.dropped("spool_full", 7)
    metrics.filtered("quiet", 9)
    metrics.lost("rotated", 100)
    metrics.dead_lettered("mysql", 1)
    metrics.set_spool("mysql", 10, 20)
    metrics.set_buffer("mysql", 5, 1.5)
    metrics.set_files(open=3, unreadable=1)
    metrics.set_config(valid=True, digest="00000000ffee99")
    metrics.reloaded("ok")
    found = metrics.snapshot()
    expected = {
        'shipper_lines_read_total{source="docker"}': 5,
        'shipper_bytes_read_total{source="docker"}': 200,
        'shipper_sink_lines_acked_total{sink="mysql"}': 4,
        'shipper_sink_retries_total{sink="mysql",code="2006"}': 1,
        'shipper_sink_retries_total{sink="mysql",code="none"}': 1,
        'shipper_dropped_total{reason="spool_full"}': 7,
        'shipper_filtered_total{transform="quiet"}': 9,
        'shipper_lost_bytes_total{cause="rotated"}': 100,
        'shipper_dead_letter_total{sink="mysql"}': 1,
        'shipper_spool_bytes{sink="mysql"}': 10,
        'shipper_spool_limit_bytes{sink="mysql"}': 20,
        'shipper_buffer_bytes{sink="mysql"}': 5,
        'shipper_oldest_unacked_seconds{sink="mysql"}': 1.5,
        "shipper_files_open": 3,
        "shipper_files_unreadable": 1,
        "shipper_config_valid": 1,
        "shipper_config_hash": 0xFFEE,
        'shipper_reloads_total{result="ok"}': 1,
        "shipper_source_lag_seconds": 0,
    }
    assert {name: found[name] for name in expected} == expected


def test_a_refused_reload_keeps_the_hash_of_what_runs(metrics: Metrics) -> None:
    metrics.set_config(valid=True, digest="0000000000aa")
    metrics.set_config(valid=False)
    assert metrics.value("shipper_config_hash") == 0xAA
    assert metrics.value("shipper_config_valid") == 0


def test_files_past_the_limit_are_summed_under_other_and_the_first_keep_their_series(metrics: Metrics) -> None:
    for number in range(MAX_SERIES + 50):
        metrics.set_lag(f"/logs/{number}", 10, number)
    lag = metrics.series()["shipper_source_lag_bytes"]
    assert len(lag) == MAX_SERIES + 1
    assert lag["other",] == 500
    assert metrics.value("shipper_source_lag_bytes", file="/logs/0") == 10
    assert metrics.value("shipper_source_lag_seconds") == MAX_SERIES + 49


def test_a_finished_file_is_no_longer_behind(metrics: Metrics) -> None:
    metrics.set_lag("/logs/a", 10, 3)
    metrics.forget_lag("/logs/a")
    assert metrics.series()["shipper_source_lag_bytes"] == {}
    assert metrics.value("shipper_source_lag_seconds") == 0


def test_a_removed_sink_leaves_no_gauge_but_keeps_its_counts(metrics: Metrics) -> None:
    metrics.acked("loki", 2)
    metrics.set_buffer("loki", 5, 900)
    metrics.forget_sink("loki")
    assert metrics.series()["shipper_oldest_unacked_seconds"] == {}
    assert metrics.value("shipper_sink_lines_acked_total", sink="loki") == 2


def test_error_codes_without_end_are_summed_under_other(metrics: Metrics) -> None:
    for number in range(MAX_SERIES * 2):
        metrics.retried("mysql", str(number))
    assert len(metrics.series()["shipper_sink_retries_total"]) == MAX_SERIES + 1
    assert metrics.value("shipper_sink_retries_total", sink="other", code="other") == MAX_SERIES


@pytest.mark.parametrize(("name", "labels"), [("shipper_nothing", {}), ("shipper_dropped_total", {"sink": "a"})])
def test_an_unknown_name_or_label_is_an_error(metrics: Metrics, name: str, labels: dict[str, str]) -> None:
    with pytest.raises(KeyError):
        metrics.value(name, **labels)


def test_counting_from_many_threads_loses_nothing(metrics: Metrics) -> None:
    def count() -> None:
        for _ in range(2_000):
            metrics.acked("mysql", 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value("shipper_sink_lines_acked_total", sink="mysql") == 8_000


def test_names_are_unique_prefixed_and_explained() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("shipper_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")


def test_counting_imports_neither_prometheus_nor_structlog() -> None:
    code = (
        "import sys, shipper.telemetry.metrics, shipper.telemetry.health, shipper.telemetry.logs\n"
        "from shipper.config.types import LogConfig\n"
        "log = shipper.telemetry.logs.configure(LogConfig(format='json'))\n"
        "shipper.telemetry.logs.get_logger('x').warning('y', error='z'); log.close()\n"
        "print([n for n in ('prometheus_client', 'structlog', 'rich', 'requests') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
