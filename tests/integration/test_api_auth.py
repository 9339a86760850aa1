"""With AUTH=keys the API serves only those who send a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from serving import on_sqlite, order, serving

from ncr_worker import logs
from ncr_worker.errors import ConfigError
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings, load_settings

ANN, BOB = "ann-secret-1", "bob=secret:2"
KEYS = f"ann:{ANN},bob:{BOB}"
OPEN = ("/", "/health", "/health/live", "/health/ready", "/docs", "/redoc", "/openapi.json")


@pytest.fixture
def client(valkey: Valkey, tmp_path: Path) -> Iterator[TestClient]:
    with serving(on_sqlite(valkey.url, tmp_path, auth="keys", api_keys=KEYS, max_body_bytes=1000)) as (client, _):
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(""), bearer(ANN + "x"), {"X-API-Key": "é"}, {"Authorization": f"Basic {ANN}"}],
)
@pytest.mark.parametrize(("method", "route"), [("GET", "/jobs"), ("POST", "/process-job"), ("GET", "/no-such-route")])
def test_without_a_known_key_nobody_is_served(
    client: TestClient, method: str, route: str, headers: dict[str, str]
) -> None:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    answer = client.request(method, route, headers=raw)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_the_body_of_a_stranger_is_not_read(client: TestClient) -> None:
    assert client.post("/process-job", content=b"{" * 5000).status_code == 401


@pytest.mark.parametrize("route", OPEN)
def test_what_says_nothing_about_jobs_is_open(client: TestClient, route: str) -> None:
    assert client.get(route).status_code == 200


@pytest.mark.parametrize("headers", [bearer(ANN), {"X-API-Key": ANN}, {"Authorization": f"bearer {ANN}"}])
def test_who_sends_a_key_is_the_actor_in_the_audit_trail(client: TestClient, headers: dict[str, str]) -> None:
    task_id = client.post("/process-job", json=order(1), headers=headers).json()["task_id"]
    client.post(f"/jobs/{task_id}/cancel", headers=bearer(BOB))
    audit = client.get(f"/jobs/{task_id}/audit", headers=headers).json()
    assert [(event["state"], event["actor"]) for event in audit["events"]] == [("queued", "ann"), ("cancelled", "bob")]
    [pause] = client.post("/pause", json={"scope": "work"}, headers=bearer(BOB)).json()["pauses"]
    assert pause["actor"] == "bob"


def test_idempotency_keys_of_two_callers_are_two_keys(client: TestClient) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post("/process-job", json=order(1), headers=bearer(ANN) | key)
    other = client.post("/process-job", json=order(2), headers=bearer(BOB) | key)
    again = client.post("/process-job", json=order(1), headers={"X-API-Key": ANN} | key)
    assert (other.status_code, again.json()) == (202, first.json())
    assert other.json()["task_id"] != first.json()["task_id"]


def test_browsers_may_ask_what_is_allowed_and_read_why_not(client: TestClient) -> None:
    origin = {"Origin": "https://ui.example"}
    preflight = client.options(
        "/process-job",
        headers=origin
        | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"},
    )
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    refused = client.get("/jobs", headers=origin)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://ui.example")


def test_the_openapi_document_says_who_needs_a_key(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert (schemes["bearer"]["scheme"], schemes["apiKey"]["name"]) == ("bearer", "X-API-Key")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            locked = path not in OPEN
            assert operation.get("security") == ([{"bearer": []}, {"apiKey": []}] if locked else None), path
            assert ("401" in operation["responses"]) is locked, path


# --- settings -------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,50}", fullmatch=True)
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1)


@given(st.dictionaries(SECRETS, NAMES, min_size=1), st.sampled_from([",", ", ", "\n", ",\n"]))
def test_all_callers_are_found(names: dict[str, str], separator: str) -> None:
    given_keys = separator.join(f"{name}:{key}" for key, name in names.items())
    settings = Settings(_env_file=None, auth="keys", api_keys=given_keys)
    assert settings.callers == tuple((name, key) for key, name in names.items())


@pytest.mark.parametrize("keys", ["", " , ", "ann", "ann:", ":key", "a b:key", "ann:key,bob:key", "ann:schlüssel"])
def test_keys_that_cannot_work_are_refused_at_the_start(keys: str) -> None:
    with pytest.raises(ConfigError, match="API_KEYS"):
        Settings(_env_file=None, auth="keys", api_keys=keys)


def test_keys_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(KEYS.replace(",", "\n") + "\n")
    monkeypatch.setenv("API_KEYS_FILE", str(file))
    assert load_settings(_env_file=None, auth="keys").callers == (("ann", ANN), ("bob", BOB))


def test_no_key_is_seen_in_a_log() -> None:
    assert {ANN, BOB} <= logs.secrets_of(Settings(_env_file=None, auth="keys", api_keys=KEYS))
