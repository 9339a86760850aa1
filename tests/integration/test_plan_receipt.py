"""What a delivery would be, and what it was: through the API and the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from commands import Ncr
from deliveries import World, as_delivered
from fastapi.testclient import TestClient
from running import Deliveries
from serving import serving


@pytest.fixture
def client(world: World, deliveries: Deliveries) -> Iterator[TestClient]:
    with serving(deliveries.host.settings) as (client, _):
        yield client


def problem(client: TestClient, path: str, **query: Any) -> tuple[int, str, str]:
    answer = client.get(path, params=query)
    body = answer.json()
    return answer.status_code, body["code"], body["detail"]


# --- plan ---------------------------------------------------------------------------------------------
def test_a_plan_is_what_will_be_delivered(world: World, client: TestClient) -> None:
    answer = client.get("/plan", params={"job_id": world.args.job_id, "username": "ann", "campaign": "spring"})
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    contents = as_delivered(world)
    assert {file["target"]: file["size"] for file in plan["files"]} == {
        f"{world.sku}/{path}": len(content) for path, content in contents.items()
    }
    total = sum(map(len, contents.values()))
    assert (plan["sku"], plan["folder"], plan["total_files"], plan["total_bytes"]) == (world.sku, world.sku, 5, total)
    assert plan["left_out"] == [world.key("source_photo.jpg")]
    assert 2 * total <= plan["disk_bytes"] <= 2.1 * total
    assert plan["memory_bytes"] > 0
    assert world.delivered() == {}
    assert not list(world.folder.glob("jobs/*/*"))


def test_a_plan_that_cannot_be_says_why(world: World, client: TestClient) -> None:
    assert problem(client, "/plan", job_id="nobody")[:2] == (404, "catalog_missing")
    assert problem(client, "/plan", job_id="../x")[:2] == (422, "invalid_request")
    with world.client() as s3:
        s3.delete_object(Bucket=world.s3.bucket, Key=world.key("Materials/oak.png"))
    status, code, detail = problem(client, "/plan", job_id=world.args.job_id)
    assert (status, code) == (422, "s3_missing")
    assert "Materials/oak.png" in detail


def test_the_command_shows_the_tree(world: World, ncr: Ncr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tree = ncr("plan", world.args.job_id)
    assert tree.code == 0, tree.error
    assert all(path.rpartition("/")[2] in tree.text for path in as_delivered(world))
    assert "materials/\n" in tree.text
    assert f"left out: {world.key('source_photo.jpg')}" in tree.text
    assert ncr("plan", world.args.job_id, "--json").document["total_files"] == 5
    for unknown, said in {"nobody": "the catalog has no job nobody", "../x": "../x"}.items():
        refused = ncr("plan", unknown)
        assert refused.code == 1
        assert said in refused.error


# --- receipt ------------------------------------------------------------------------------------------
def test_the_receipt_proves_the_delivery(world: World, deliveries: Deliveries, client: TestClient, ncr: Ncr) -> None:
    task = deliveries.submit(world)
    assert problem(client, f"/jobs/{task}/receipt")[:2] == (409, "not_finished")
    assert deliveries.run_to_the_end(task).state == "succeeded"
    answer = client.get(f"/jobs/{task}/receipt")
    assert f"receipt-{task}.json" in answer.headers["Content-Disposition"]
    kept = answer.json()
    receipt = kept["receipt"]
    assert {file["target"]: (file["size"], file["sha256"]) for file in receipt["files"]} == {
        f"{world.sku}/{path}": (len(content), hashlib.sha256(content).hexdigest())
        for path, content in as_delivered(world).items()
    }
    assert receipt["host_key"] == world.settings.sftp_host_keys[0]
    times = [receipt[name] for name in ("submitted_at", "validated_at", "published_at", "delivered_at")]
    assert all(time.endswith("Z") for time in times)
    assert times == sorted(times)
    assert kept["verdict"]["answer"]["data"][0]["files"] == 5
    shown = ncr("job", task)
    assert shown.code == 0, shown.error
    assert all(file["sha256"] in shown.text for file in receipt["files"])
    assert "verdict   Valid" in shown.text
    assert ncr("job", task, "--json").document["receipt"] == receipt


def test_of_a_rejected_job_the_whole_answer_is_kept(
    world: World, deliveries: Deliveries, client: TestClient, ncr: Ncr
) -> None:
    world.put("Materials/oak.glb", b"not a model")
    task = deliveries.submit(world)
    job = deliveries.run_to_the_end(task)
    assert (job.state, job.error_code, job.attempt) == ("failed", "validation_failed", 1)
    kept = client.get(f"/jobs/{task}/receipt").json()
    assert kept["receipt"] is None
    assert kept["error"]["code"] == kept["status"] == "validation_failed"
    assert kept["verdict"]["answer"]["data"][0]["result"] == "Invalid"
    assert "oak.glb" in kept["verdict"]["answer"]["data"][0]["reasons"][0]
    assert "verdict   Invalid" in ncr("job", task).text


def test_an_unknown_job_has_no_receipt(client: TestClient) -> None:
    assert problem(client, "/jobs/nobody/receipt")[:2] == (404, "not_found")
