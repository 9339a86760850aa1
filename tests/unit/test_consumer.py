"""The worker and its broker."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery, bootsteps
from celery.contrib.testing.worker import start_worker
from kombu.exceptions import OperationalError

from ncr_worker.worker.consumer import PatientConsumer


@pytest.mark.timeout(60)  # a worker that gives up here never says so
@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")  # told at each lost connection
def test_a_broker_that_goes_away_while_the_worker_connects_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Celery(broker="memory://", set_as_current=False)
    monkeypatch.setattr(app.log, "setup", lambda *_args, **_options: None)  # the level of all later tests' logs
    app.conf.worker_consumer = f"{PatientConsumer.__module__}:{PatientConsumer.__name__}"
    app.conf.broker_connection_retry_on_startup = True
    starts, again = [], threading.Event()

    class Greeting(bootsteps.StartStopStep):
        requires = ("celery.worker.consumer.connection:Connection",)

        def start(self, parent: Any) -> None:
            starts.append(parent)
            if len(starts) == 1:
                raise OperationalError("the broker went away")  # as kombu says it of a connection of its pool
            again.set()

    app.steps["consumer"].add(Greeting)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        assert again.wait(30)
