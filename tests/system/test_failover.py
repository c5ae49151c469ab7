"""Several broker URLs: a node that dies takes neither publishers nor workers with it, and comes back."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.workers import Bench, bench
from unlost.testing.brokers.cluster import docker_cluster

FAILOVER = timedelta(seconds=90)

PUBLISH = "for n in range({first}, {first} + 20): m.effect.delay(f'n{{n}}')"


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["round-robin", "shuffle"])
def test_publishers_and_workers_go_to_another_node_and_back(tmp_path: Path, strategy: str) -> None:
    """Each node in turn is killed and comes back; what was published before, while and after is done once."""
    with docker_cluster(environ=os.environ) as cluster, cluster.fresh_vhost() as vhost:
        urls = cluster.amqp_url(vhost.name)
        with bench(vhost, tmp_path, CELERY_BROKER_URL=urls, TEST_FAILOVER=strategy, UNLOST_LEASE="4") as shop:
            shop.start()
            published = publish(shop, 0)
            for node in cluster.nodes:
                node.kill()
                published = publish(shop, published)
                done(shop, published)
                cluster.heal()
                published = publish(shop, published)
                done(shop, published)
            assert shop.workers[0].poll() is None
            assert shop.letters() == []


def publish(shop: Bench, first: int) -> int:
    """Publish twenty tasks, each confirmed, and return how many there are now."""
    shop.call(PUBLISH.format(first=first))
    return first + 20


def done(shop: Bench, published: int) -> None:
    """Wait until all have had their effect, and see that it was one each."""
    shop.wait_for(lambda: len(shop.effects()) == published, f"{published} tasks are done", FAILOVER)
    assert set(shop.effects().values()) == {1}
