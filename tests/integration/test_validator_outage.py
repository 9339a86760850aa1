"""A validator that is down holds up all deliveries of a host, visibly, and costs none of them an attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deliveries import World, a_world, as_delivered
from proxy import proxy_to
from running import delivering, with_ledger

from ncr_worker.job import Job, State
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.run import ActiveRun
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.views.job import job_status


@pytest.fixture
def worlds(s3: S3, validator: Validator, sftp: SFTP, tmp_path: Path) -> Iterator[list[World]]:
    """Three jobs in one catalog."""
    worlds = [a_world(s3, validator, sftp, tmp_path) for _ in range(3)]
    yield worlds
    for world in worlds:
        world.close()


def test_all_wait_and_all_go_on(worlds: list[World], validator: Validator) -> None:
    settings = with_ledger(worlds[0], validator_pause=0.5)
    with delivering(settings) as deliveries:
        ids = [deliveries.submit(world) for world in worlds]
        validator.kill()
        try:
            held = [deliveries.run_next(), deliveries.run_next()]
            assert [job.id for job in held] == ids[:2]
            for job in held:
                assert (job.state, job.reason, job.attempt) == (State.QUEUED, "service_down", 0)
                shown = job_status(job, PIPELINE, None, datetime.now(UTC))
                assert (shown.status, shown.reason) == ("pending", "service_down")
                assert "validator" in shown.message
            assert held[0].stage == "validate"
            assert held[1].stage == "fetch", "nothing is fetched for a job that has to wait"
            assert not list(settings.jobs_folder.glob(f"{ids[1]}/files/*"))
            again = [deliveries.run_next() for _ in range(4)]
            assert {(job.state, job.attempt) for job in again} == {(State.QUEUED, 0)}
        finally:
            validator.start()
        for job_id in ids:
            job = deliveries.run_to_the_end(job_id)
            assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
    for world in worlds:
        assert world.delivered() == as_delivered(world)
    assert not list(settings.jobs_folder.iterdir())


def test_patience_has_an_end(worlds: list[World], validator: Validator) -> None:
    world = worlds[0]
    with delivering(with_ledger(world, validator_pause=0.2, validator_patience=1.0)) as deliveries:
        began = time.monotonic()
        task = deliveries.submit(world)
        validator.kill()
        try:
            job = deliveries.run_to_the_end(task)
        finally:
            validator.start()
        assert time.monotonic() - began > 1.0
        assert (job.state, job.error_code) == (State.FAILED, "validator_unavailable")
        assert "the validator has been down" in (job.error or "")
        assert world.hidden() == []


def answered(world: World, validator: Validator, *answers: bytes, then: bytes | None = None) -> Job:
    """The job's end when the validator's first calls are answered so, and then as it does, or always with `then`."""
    left = list(answers)

    def answer(request: bytes) -> bytes | None:
        if not request.startswith(b"POST "):
            return None
        return left.pop(0) if left else then

    with proxy_to(validator.port) as path:
        path.answer = answer
        url = f"http://127.0.0.1:{path.port}"
        with delivering(with_ledger(world, validator_url=url, validator_pause=0.2)) as deliveries:
            return deliveries.run_to_the_end(deliveries.submit(world))


def http(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    "refusals",
    [
        [http("429 Too Many Requests", "later", "Retry-After: 1")] * 2,
        [http("503 Service Unavailable", "later")] * 4,
    ],
    ids=["429", "503"],
)
def test_refusals_for_now_cost_no_attempt(worlds: list[World], validator: Validator, refusals: list[bytes]) -> None:
    job = answered(worlds[0], validator, *refusals)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
    assert worlds[0].delivered() == as_delivered(worlds[0])


def test_garbage_costs_attempts_and_ends_the_job(
    worlds: list[World], validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ActiveRun, "wait", lambda _run, _seconds: None)  # the runner's pauses
    job = answered(worlds[0], validator, then=http("200 OK", "<html>all is well</html>"))
    assert (job.state, job.attempt, job.error_code) == (State.FAILED, 5, "validator_garbage")
    assert worlds[0].delivered() == {}
    assert worlds[0].hidden() == []
