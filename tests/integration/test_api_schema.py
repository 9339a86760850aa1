"""Whatever is sent to the API, it answers as its OpenAPI document says, and never with a 5xx (schemathesis)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from serving import listening, on_sqlite, order, submit, submit_batch

from ncr_worker.sandbox.valkey import Valkey

PAUSES = ("/pause", "/pauses", "/resume")
STREAM = "/jobs/{task_id}/events"
"""It answers for as long as a job runs; test_api_events.py follows it."""


@pytest.mark.parametrize(
    "chosen",
    [
        # While the intake is paused a submit is refused with 503, so that is another run.
        [f"--exclude-path={path}" for path in (*PAUSES, STREAM)],
        [f"--include-path={path}" for path in PAUSES],
    ],
    ids=["jobs", "pauses"],
)
def test_every_answer_is_documented(chosen: Sequence[str], valkey: Valkey, tmp_path: Path) -> None:
    # No job is in the catalog, so none of these servers is ever asked.
    servers = {"s3_bucket": "files", "s3_endpoint_url": "http://127.0.0.1:1"}
    servers |= {"s3_access_key_id": "nobody", "s3_secret_access_key": "none"}
    with listening(on_sqlite(valkey.url, tmp_path, **servers)) as (client, _):
        submit(client)
        submit_batch(client, 2, 3)
        assert client.get("/plan", params={"job_id": order()["job_id"]}).status_code == 404
        found = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "run",
                f"{client.base_url}/openapi.json",
                "--max-examples=8",
                # A cursor, a status word or an Idempotency-Key may be well formed and yet mean nothing: 422.
                "--exclude-checks=positive_data_acceptance",
                "--generation-deterministic",
                "--no-color",
                *chosen,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
