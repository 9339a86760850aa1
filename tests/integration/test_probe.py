"""With how much memory the first job of a kind starts, by MEMORY_PREDICTION."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from serving import HOST, migrated

from ncr_worker.app import App
from ncr_worker.ledger import Offer
from ncr_worker.pipeline import GIB
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.sandbox.process import free_port
from ncr_worker.settings import Settings


@pytest.mark.parametrize(("prediction", "share"), [("learned", 1 / 3), ("declared", 1)])
def test_the_first_job_of_a_kind_finds_out_where_there_is_something_to_find_out(
    tmp_path: Path, prediction: Literal["learned", "declared"], share: float
) -> None:
    settings = Settings(
        _env_file=None,
        database_url=migrated(f"sqlite:///{tmp_path / 'ncr.sqlite3'}"),
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
        work_folder=tmp_path / "work",
        memory_prediction=prediction,
    )
    app = App(settings)
    try:
        for number in range(2):
            app.submit("deliver", DeliverArgs(job_id=f"job-{number}", username="ann", campaign="spring"))
        held = [app.ledger.queue.pick(Offer(HOST, 1, GIB, True, GIB))[0].reserved for _ in range(2)]
    finally:
        app.close()
    assert held == [int(PIPELINE.memory * share), PIPELINE.memory]
