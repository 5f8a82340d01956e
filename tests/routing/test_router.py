"""Routes first, active for the rest."""

from __future__ import annotations

from shipper.record import Batch, Resource
from shipper.routing.router import RouteConfig, Router

RESOURCE = Resource("docker", {"service.name": "api"})


def levels(*severities: int) -> Batch:
    count = len(severities)
    return Batch(
        times=[1] * count,
        stamps=[1] * count,
        hashes=list(range(count)),
        raws=[str(s) for s in severities],
        resources=[RESOURCE] * count,
        offsets=list(range(count)),
        severities=list(severities),
        messages=[str(s) for s in severities],
        attributes=[{} for _ in severities],
    )


def split(router: Router, *severities: int) -> dict[str, list[str]]:
    return {sink: batch.raws for sink, batch in router.split(levels(*severities)).items()}


def test_without_routes_everything_goes_to_every_active_sink_uncopied() -> None:
    router = Router(["a", "b"], [])
    batch = levels(9, 17)
    assert router.split(batch) == {"a": batch, "b": batch}
    assert router.split(batch)["a"] is batch
    assert not router.wants_parse


def test_every_matching_route_adds_its_sinks_and_the_rest_goes_to_active() -> None:
    router = Router(
        ["main"],
        [RouteConfig(match="level>=error", to=["main", "alarm"]), RouteConfig(match="level:fatal", to="pager")],
    )
    assert router.sinks == ("main", "alarm", "pager")
    assert split(router, 9, 17, 21) == {"main": ["9", "17", "21"], "alarm": ["17", "21"], "pager": ["21"]}


def test_routed_records_do_not_reach_active_unless_named() -> None:
    router = Router(["main"], [RouteConfig(match="level:debug", to="trash")])
    assert split(router, 5, 9) == {"main": ["9"], "trash": ["5"]}
    assert split(router, 5) == {"trash": ["5"]}


def test_empty_batch_goes_nowhere() -> None:
    assert Router(["a"], []).split(levels()) == {}
