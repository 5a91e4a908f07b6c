"""Requests of which some go on at a time, and what becomes of those that hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hub.client import LocalHub

from medretrieval import hub as hub_client
from medretrieval.errors import Cancelled


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a call can wait for that hangs until the test ends."""
    event = threading.Event()
    others = set(threading.enumerate())
    yield event
    event.set()
    own = [thread for thread in threading.enumerate() if thread not in others]
    for thread in own:
        thread.join(10)
    assert not any(thread.is_alive() for thread in own)


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_answers_come_in_order(at_once: int) -> None:
    going, most = 0, 0
    lock = threading.Lock()

    def square(number: int) -> int:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
        with lock:
            going -= 1
        return number * number

    assert hub_client.each(square, range(20), at_once=at_once) == [n * n for n in range(20)]
    assert most <= at_once
    assert hub_client.each(square, [], at_once=at_once) == []


def test_after_an_error_nothing_is_begun() -> None:
    begun = []

    def call(number: int) -> None:
        begun.append(number)
        if number == 2:
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        hub_client.each(call, range(100), at_once=1)
    assert begun == [0, 1, 2]


def test_an_error_does_not_wait_for_what_hangs(
    stuck: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "_GRACE_S", 0.01)

    def call(number: int) -> None:
        if number:
            raise ValueError("wrong")
        stuck.wait()

    with pytest.raises(ValueError, match="wrong"):
        hub_client.each(call, range(2), at_once=2)
    assert hub_client.left_behind()


def test_what_does_not_answer_is_left_behind(stuck: threading.Event) -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 0.01 s"):
        hub_client.within(0.01, stuck.wait)
    assert hub_client.left_behind()


def test_what_stalls_is_left_behind(stuck: threading.Event) -> None:
    with pytest.raises(TimeoutError, match=r"nothing came for 0.01 s"):
        hub_client.steadily(lambda meter: stuck.wait(), stalled_s=0.01)


def test_whoever_transfers_is_told_that_nobody_waits(stuck: threading.Event) -> None:
    told: list[Exception] = []
    done = threading.Event()

    def transfer(meter: hub_client.Meter) -> None:
        meter.count(5)
        stuck.wait()
        try:
            meter.count(5)
        except TimeoutError as error:
            told.append(error)
        done.set()

    def stop(count: int) -> None:
        if count:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        hub_client.steadily(transfer, report=stop)
    stuck.set()
    assert done.wait(10)
    assert len(told) == 1


def test_the_client_reports_often(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for size, expected in ((10 << 20, 256 << 10), (100, 100)):
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", size)
        hub_client.small_pieces()
        assert expected == constants.DOWNLOAD_CHUNK_SIZE


def test_a_file_of_some_megabytes_is_reported_on_its_way(hub: LocalHub) -> None:
    from huggingface_hub import hf_hub_download

    hub.add_repo("lab/x", {"a.bin": bytes(3 << 20)})
    meter = hub_client.Meter()
    seen: list[int] = []
    count = meter.count
    meter.count = lambda number: (seen.append(number), count(number))[1]  # type: ignore[method-assign]
    hub_client.small_pieces()
    hf_hub_download("lab/x", "a.bin", repo_type="dataset", tqdm_class=meter.bar(3 << 20))
    assert sum(seen) == meter.bytes == 3 << 20
    assert max(seen) <= 256 << 10
