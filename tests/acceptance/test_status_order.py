"""What people are shown of a job never goes back, unless its trail says that it went back to the queue, and why."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from faults import wavering
from faults.gated import PIPELINE as GATED
from following import Event, following
from stack import HERE, MakeStack, Stack, eventually

from ncr_worker.pipeline import Pipeline
from ncr_worker.sandbox.own import Api

pytest_plugins = ["stacks"]
pytestmark = pytest.mark.slow

RANKS = {"pending": 0, "waiting": 0, "processing": 1, "validation_passed": 2, "uploading": 3}
ENDED = 4
KINDS: Mapping[str, Pipeline[Any]] = {kind.kind: kind for kind in (GATED, wavering.PIPELINE)}


def rank(word: str) -> int:
    return RANKS.get(word, ENDED)


@contextmanager
def served(stack: Stack, folder: Path) -> Iterator[str]:
    """The address of a real API on this stack."""
    environment = stack.env | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    with Api(folder / "api", environment | {"WORK_FOLDER": str(folder)}) as api:
        yield api.url


class Watch:
    """All that a client is shown of one job: by polling as fast as it can, and by the stream of events."""

    def __init__(self, url: str, job_id: str, stop: threading.Event) -> None:
        self.job_id = job_id
        self.polled: list[dict[str, Any]] = []
        self.streamed: list[Event] = []
        self._url = url
        self._stop = stop

    def poll(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                self.polled.append(client.get(f"/jobs/{self.job_id}").json())
                self._stop.wait(0.02)

    def stream(self) -> None:
        """As a browser's EventSource: it comes back until it is stopped."""
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                last = max((event.id or 0 for event in self.streamed), default=0)
                with following(client, self.job_id, **{"Last-Event-ID": str(last)}) as stream:
                    self.streamed += stream
                self._stop.wait(0.2)


def kill_in(stack: Stack, job_id: str, point: str) -> None:
    os.kill(stack.reached(job_id, point), signal.SIGKILL)
    stack.open(job_id, point)


def test_a_status_goes_back_only_where_the_trail_says_why(make_stack: MakeStack, tmp_path: Path) -> None:
    stack = make_stack(celery_worker_concurrency=3, retry_delay=0.1)
    with served(stack, tmp_path) as url, httpx2.Client(base_url=url, timeout=60) as client:
        plain = [stack.deliver() for _ in range(2)]
        killed, cancelled = stack.deliver("upload"), stack.deliver("publish")
        yielding = [stack.submit("wavering") for _ in range(2)]
        stop = threading.Event()
        watches = [Watch(url, job_id, stop) for job_id in stack.jobs]
        with ThreadPoolExecutor(2 * len(watches)) as threads:
            try:
                watching = [threads.submit(each) for watch in watches for each in (watch.poll, watch.stream)]
                stack.worker("h1")
                for job_id, point in ((killed, "upload"), (cancelled, "publish")):
                    stack.reached(job_id, point)  # these two stay, until the others have asked for the whole host
                eventually(lambda: all(gave_way(stack, job_id) for job_id in yielding), "they yield")
                kill_in(stack, killed, "upload")
                assert client.post(f"/jobs/{cancelled}/cancel").status_code == 202
                stack.ended()
                stack.open(cancelled, "publish")
                assert client.post(f"/jobs/{cancelled}/retry").status_code == 202
                stack.ended()
                ends = {job_id: stack.events(job_id)[-1].id for job_id in stack.jobs}
                eventually(lambda: all(seen_until(watch, ends[watch.job_id]) for watch in watches), "all was shown")
            finally:
                stop.set()
            for each in watching:
                each.result()
        for watch in watches:
            check(watch, client.get(f"/jobs/{watch.job_id}/audit").json()["events"])

    trails = {job_id: [(event.state, event.reason) for event in stack.events(job_id)] for job_id in stack.jobs}
    for job_id in plain:
        assert [state for state, _ in trails[job_id]].count("queued") == 1
    assert any(state == "queued" and "died" in str(reason) for state, reason in trails[killed])
    assert [state for state, _ in trails[cancelled] if state in ("cancelled", "succeeded")] == [
        "cancelled",
        "succeeded",
    ]
    assert ("queued", "retry") in trails[cancelled]
    for job_id in yielding:
        again = [reason for state, reason in trails[job_id] if state == "queued"]
        assert again == ["new", "yielded", *["the other side is busy"] * wavering.FAILURES]


def gave_way(stack: Stack, job_id: str) -> bool:
    return "yielded" in [event.reason for event in stack.events(job_id)]


def seen_until(watch: Watch, last: int) -> bool:
    ended = watch.polled and watch.polled[-1]["finished_at"] is not None
    return bool(ended) and any(event.id == last for event in watch.streamed)


def check(watch: Watch, trail: Sequence[Mapping[str, Any]]) -> None:
    pipeline = KINDS[watch.polled[0]["kind"]]
    ranks = {event["id"]: rank(pipeline.word(event["state"], event["stage"])) for event in trail}

    for before, event in pairwise(trail):
        back = ranks[event["id"]] < ranks[before["id"]]
        assert not back or (event["state"] == "queued" and event["reason"]), (before, event)

    assert [event.data for event in watch.streamed if event.name == "state"] == trail
    now = 0
    for seen in watch.streamed:  # a status is as new as the events before it
        now = ranks[seen.id] if seen.id is not None else now
        assert seen.name not in ("progress", "end") or rank(seen.data["status"]) == now, seen

    at = 0
    for record in watch.polled:  # each is one of the trail's, and none is older than the one before
        known = (record["state"], record["stage"], record["attempt"])
        later = [i for i, event in enumerate(trail[at:], at) if _of(event) == known]
        assert later, (record, trail[at:])
        at = later[0]
        assert rank(record["status"]) == ranks[trail[at]["id"]]


def _of(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return event["state"], event["stage"], event["attempt"]
