"""Versions published before a running server: it goes over to them with every request answered, or not at all."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from launchpad import backends, declaration, replacement
from launchpad.backends import how_ended
from launchpad.client import RestClient, ServerError
from launchpad.errors import EnvironmentFault
from launchpad.exclusive import exclusive
from launchpad.pipeline import context
from launchpad.publishing import NotLoaded, Publisher
from launchpad.server import Server
from launchpad.spec import BatchQueue
from tests.waiting import wait_for

MODEL = "digits-cnn"
QUEUE = BatchQueue(max_batch_size=8, batch_timeout_micros=2000, max_enqueued_batches=100)


@pytest.fixture(scope="module")
def served(shared_checkout):
    shared_checkout.invoke("launch", check=True)
    return shared_checkout


@pytest.fixture
def publisher(served) -> Publisher:
    return Publisher(declaration.load(served.root))


@contextmanager
def asked_all_along(publisher: Publisher, path: str = "") -> Iterator[Counter[str]]:
    """Ask for predictions without a pause while the block runs; gives the answers by kind."""
    answers: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        client = RestClient(str(publisher.server.rest_url))
        while not over.is_set():
            try:
                client.predict(MODEL + path, "serving_default", {"pixels": np.zeros((1, 784), np.float32)})
                answers["right"] += 1
            except ServerError as error:
                answers[str(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield answers
    over.set()
    for thread in threads:
        thread.join()


def states(publisher: Publisher) -> dict[int, str]:
    found = RestClient(str(publisher.server.rest_url)).states(MODEL)
    return {version: state for version, state in found.items() if state != "END"}


def test_new_parameters_take_over_with_the_same_weights_and_no_failed_request(publisher, served):
    before = publisher.served(MODEL)
    weights = "variables/variables.data-00000-of-00001"
    with asked_all_along(publisher) as answers:
        published = publisher.publish(MODEL, batching=QUEUE, why="a test", replace=True)

    assert set(answers) == {"right"}
    assert published.version > before and states(publisher) == {published.version: "AVAILABLE"}
    assert publisher.batching(MODEL, published.version) == QUEUE
    assert publisher.versions(MODEL) == [published.version]
    original = served.layout.version(MODEL, 1)
    assert os.path.samefile(served.layout.deployed(MODEL) / str(published.version) / weights, original / weights)
    recorded = Server.ready(served.layout)
    assert "max_batch_size { value: 8 }" in recorded.adjusted[MODEL]
    assert recorded.configuration != recorded.content
    assert "digits-cnn, changed while it ran: weights of version 1" in served.invoke("status", check=True).stdout


def test_a_version_with_larger_batches_is_warmed_for_each_of_their_sizes(publisher, served):
    larger = BatchQueue(max_batch_size=24, max_enqueued_batches=100)
    published = publisher.publish(MODEL, batching=larger, replace=True)
    signatures = 4
    said = f"model {MODEL} version {published.version} warmed up with {24 * signatures} requests"
    assert said in served.layout.server_log.read_text()


def test_a_version_that_cannot_be_loaded_is_withdrawn_and_the_old_one_serves_on(publisher, served, tmp_path):
    broken = tmp_path / "7"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no model")
    before, folders = publisher.served(MODEL), publisher.versions(MODEL)
    with asked_all_along(publisher) as answers, pytest.raises(NotLoaded) as raised:
        publisher.publish(MODEL, source=broken)

    assert set(answers) == {"right"}
    assert f"did not load {MODEL} version {before + 1}: Read less bytes" in str(raised.value)
    assert (publisher.served(MODEL), publisher.versions(MODEL)) == (before, folders)
    published = publisher.publish(MODEL, replace=True)
    assert states(publisher) == {published.version: "AVAILABLE"}


def test_a_withdrawn_version_gives_way_to_the_one_before(publisher):
    before = publisher.served(MODEL)
    with asked_all_along(publisher) as answers:
        published = publisher.publish(MODEL)
        assert publisher.served(MODEL) == published.version
        publisher.withdraw(MODEL, published.version)

    assert set(answers) == {"right"}
    assert publisher.served(MODEL) == before and publisher.versions(MODEL) == [before]
    with pytest.raises(EnvironmentFault, match="all that digits-cnn has"):
        publisher.withdraw(MODEL, before)


def test_a_label_always_has_a_version_behind_it(publisher):
    publisher.label(MODEL, {"stable": publisher.served(MODEL)})
    with asked_all_along(publisher, "/labels/stable") as answers:
        published = publisher.publish(MODEL, batching=QUEUE, replace=True)

    assert set(answers) == {"right"}
    assert publisher.labels(MODEL) == {"stable": published.version}
    assert states(publisher) == {published.version: "AVAILABLE"}
    publisher.label(MODEL, {})


def test_two_versions_serve_side_by_side_and_a_label_moves_between_them(publisher):
    first = publisher.served(MODEL)
    second = publisher.publish(MODEL).version
    publisher.serve(MODEL, [first, second])
    publisher.label(MODEL, {"stable": first, "canary": second})
    with asked_all_along(publisher, "/labels/stable") as answers:
        publisher.label(MODEL, {"stable": second})
        publisher.label(MODEL, {"stable": first})

    assert set(answers) == {"right"}
    assert states(publisher) == {first: "AVAILABLE", second: "AVAILABLE"}
    publisher.label(MODEL, {})
    publisher.serve(MODEL, None)
    publisher.withdraw(MODEL, second)
    assert states(publisher) == {first: "AVAILABLE"}


def test_two_processes_do_not_publish_at_once(publisher, served):
    before = publisher.served(MODEL)
    with exclusive(served.layout.publishing_lock), pytest.raises(EnvironmentFault, match="another process publishes"):
        publisher.publish(MODEL)
    assert states(publisher) == {before: "AVAILABLE"}


def test_only_what_was_published_and_is_not_served_is_pruned(publisher, served):
    before = publisher.served(MODEL)
    newest = publisher.publish(MODEL).version
    by_hand = served.layout.deployed(MODEL) / "0"
    by_hand.mkdir()
    wait_for(lambda: states(publisher) == {newest: "AVAILABLE"})

    assert publisher.prune(MODEL) == [before]
    assert publisher.versions(MODEL) == [0, newest]
    by_hand.rmdir()


def test_a_server_with_more_batch_threads_takes_over_with_no_failed_request(publisher, served):
    old = publisher.server
    pinned = publisher.publish(MODEL, batching=QUEUE, replace=True)
    with asked_all_along(publisher) as answers:
        new = replacement.with_batch_threads(context(served.root), 3)

    assert set(answers) == {"right"}
    assert not how_ended(new) and how_ended(old) and new.rest_port == old.rest_port
    assert Server.ready(served.layout) == new
    assert replacement.batch_threads(served.layout) == 3
    assert states(Publisher(declaration.load(served.root))) == {pinned.version: "AVAILABLE"}
    assert len(backends.of(new).find(served.layout)) == 1


def test_a_new_server_that_does_not_start_leaves_the_old_one_in_place(publisher, served):
    before = replacement.batch_threads(served.layout)
    with asked_all_along(publisher) as answers, pytest.raises(NotLoaded, match="ended while starting"):
        replacement.with_batch_threads(context(served.root), -1)

    assert set(answers) == {"right"}
    assert replacement.batch_threads(served.layout) == before
    assert not how_ended(Server.ready(served.layout))
    assert served.invoke("logs", check=True).stdout


def test_a_server_that_cannot_share_its_ports_is_not_replaced(publisher):
    assert "cannot share a port" in replacement.obstacle(replace(publisher.server, command=[]))
