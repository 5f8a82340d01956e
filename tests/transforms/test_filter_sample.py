"""Filter and sample remove what they were told to, the same on every replay."""

from __future__ import annotations

import pytest

from shipper.errors import ConfigError
from shipper.record import Batch, Resource
from shipper.transforms.filter import FilterConfig, FilterTransform
from shipper.transforms.sample import SampleConfig, SampleTransform


def batch_of(count: int, severity: int = 9) -> Batch:
    return Batch(
        times=[0] * count,
        stamps=[0] * count,
        hashes=[(at * 2654435761) & 0xFFFFFFFF for at in range(count)],
        raws=[str(at) for at in range(count)],
        resources=[Resource("t", {})] * count,
        offsets=list(range(count)),
        severities=[severity if at % 2 else 5 for at in range(count)],
        messages=[str(at) for at in range(count)],
        attributes=[{} for _ in range(count)],
    )


def test_drop_removes_what_matches_and_keep_all_else() -> None:
    dropped = FilterTransform(FilterConfig(type="filter", drop="level>=info")).apply(batch_of(6))
    kept = FilterTransform(FilterConfig(type="filter", keep="level>=info")).apply(batch_of(6))
    assert (dropped.raws, kept.raws) == (["0", "2", "4"], ["1", "3", "5"])


def test_a_filter_that_removes_nothing_gives_the_same_batch() -> None:
    batch = batch_of(4)
    assert FilterTransform(FilterConfig(type="filter", drop="level>=error")).apply(batch) is batch
    assert FilterTransform(FilterConfig(type="filter", keep="level>=trace")).apply(batch) is batch


@pytest.mark.parametrize("config", [FilterConfig(type="filter"), FilterConfig(type="filter", drop="a", keep="b")])
def test_a_filter_needs_exactly_one_condition(config: FilterConfig) -> None:
    with pytest.raises(ConfigError, match="either drop or keep"):
        FilterTransform(config)


def test_a_bad_condition_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        FilterTransform(FilterConfig(type="filter", drop="level>=("))


def test_sampling_keeps_about_the_share_and_the_same_rows_again() -> None:
    sample = SampleTransform(SampleConfig(type="sample", rate=0.1))
    first = sample.apply(batch_of(10_000)).raws
    assert 900 < len(first) < 1100
    assert sample.apply(batch_of(10_000)).raws == first


def test_sampling_spares_warnings_and_rows_that_do_not_match() -> None:
    sample = SampleTransform(SampleConfig(type="sample", rate=0.0))
    assert sample.apply(batch_of(10, severity=13)).raws == ["1", "3", "5", "7", "9"]
    only = SampleTransform(SampleConfig(type="sample", rate=0.0, match="level:debug", keep=""))
    assert only.apply(batch_of(10)).raws == ["1", "3", "5", "7", "9"]


def test_a_rate_of_one_keeps_all() -> None:
    batch = batch_of(10)
    assert SampleTransform(SampleConfig(type="sample", rate=1.0)).apply(batch) is batch
