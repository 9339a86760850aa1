"""What every store does. A new store is one more fixture here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from ncr_worker.errors import Cancelled, ConfigError, Rejected
from ncr_worker.sandbox.s3 import S3
from ncr_worker.settings import Settings
from ncr_worker.stores import CHUNK, Store, open_store

CONTENT = bytes(range(256)) * (CHUNK // 128)


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    settings, url = Settings(), f"file://{tmp_path / 'store'}"
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        settings = Settings.model_validate({name.lower(): value for name, value in server.env().items()})
        url = f"s3://{settings.s3_bucket}"
    opened = open_store(url, settings)
    yield opened
    opened.close()


@pytest.fixture
def prefix() -> str:
    return f"stores-{uuid4().hex}/"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local"
    path.write_bytes(CONTENT)
    return path


def scheme(store: Store) -> str:
    return type(store).__module__.rpartition(".")[2]


def test_what_is_written_can_be_read(store: Store, prefix: str, local: Path, tmp_path: Path) -> None:
    written = store.write(local, f"{prefix}a b/ü.bin")
    assert written == store.head(written.key)
    assert written.size == len(CONTENT)
    told: list[int] = []
    assert store.read(written, tmp_path / "copy", told.append) == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert sum(told) == len(CONTENT)
    assert max(told) <= 2 * CHUNK


@pytest.mark.parametrize("key", ["a//b", "50% + 1?#.bin", "back\\slash"])
def test_s3_keys_are_no_paths(key: str, s3: S3, local: Path, tmp_path: Path) -> None:
    settings = Settings.model_validate({name.lower(): value for name, value in s3.env().items()})
    store = open_store(f"s3://{s3.bucket}", settings)
    with closing(store):
        written = store.write(local, f"keys-{uuid4().hex}/{key}")
        assert store.read(written, tmp_path / "copy") == hashlib.sha256(CONTENT).hexdigest()
        assert (tmp_path / "copy").read_bytes() == CONTENT
        local.write_bytes(b"changed since")
        store.write(local, written.key)
        with pytest.raises(Rejected) as caught:
            store.read(written, tmp_path / "copy")
        assert caught.value.code == "s3_changed"


def test_an_empty_file_is_a_file(store: Store, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    written = store.write(tmp_path / "empty", f"{prefix}empty")
    assert store.read(written, tmp_path / "copy") == hashlib.sha256(b"").hexdigest()
    assert (tmp_path / "copy").read_bytes() == b""


def test_list_has_all_below_a_prefix_in_order(store: Store, prefix: str, local: Path) -> None:
    keys = [f"{prefix}{name}" for name in ("b", "a/2", "a/1")]
    for key in (*keys, f"other-{prefix}x"):
        store.write(local, key)
    assert [entry.key for entry in store.list(prefix)] == sorted(keys)
    assert [entry.key for entry in store.list(f"{prefix}a/")] == sorted(keys)[:2]
    assert list(store.list(f"{prefix}none")) == []


def test_a_missing_file_is_named(store: Store, prefix: str, local: Path, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=f"{prefix}gone") as caught:
        store.head(f"{prefix}gone")
    assert caught.value.code == f"{scheme(store)}_missing"
    entry = store.write(local, f"{prefix}x")
    store.remove(entry.key)
    with pytest.raises(Rejected) as caught:
        store.read(entry, tmp_path / "copy")
    assert caught.value.code == f"{scheme(store)}_missing"


def test_a_file_that_was_changed_is_not_read(store: Store, prefix: str, local: Path, tmp_path: Path) -> None:
    entry = store.write(local, f"{prefix}x")
    local.write_bytes(CONTENT[::-1])
    assert store.write(local, f"{prefix}x").etag != entry.etag
    with pytest.raises(Rejected) as caught:
        store.read(entry, tmp_path / "copy")
    assert caught.value.code == f"{scheme(store)}_changed"


def test_remove_may_be_said_twice(store: Store, prefix: str, local: Path) -> None:
    store.write(local, f"{prefix}x")
    store.remove(f"{prefix}x")
    store.remove(f"{prefix}x")
    assert list(store.list(prefix)) == []


def test_progress_may_stop_a_transfer(store: Store, prefix: str, local: Path, tmp_path: Path) -> None:
    def stop(_count: int) -> None:
        raise Cancelled("by test")

    entry = store.write(local, f"{prefix}x")
    with pytest.raises(Cancelled):
        store.read(entry, tmp_path / "copy", stop)
    store.read(entry, tmp_path / "copy")  # and the store is as good as before


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x", "x\0", ""])
def test_no_key_leaves_a_local_store(key: str, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}", Settings())
    with pytest.raises(Rejected) as caught:
        store.head(key)
    assert caught.value.code == "file_unsafe_key"


def test_an_unknown_scheme_is_a_matter_of_settings() -> None:
    with pytest.raises(ConfigError, match="gopher"):
        open_store("gopher://x", Settings())


def test_missing_s3_keys_are_a_matter_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="S3_ACCESS_KEY_ID"):
        open_store("s3://files", Settings(_env_file=None, s3_endpoint_url="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"s3_access_key_id": "nobody"}, "S3_ACCESS_KEY_ID"),
        ({"s3_endpoint_url": "s3.example"}, "S3_ENDPOINT_URL"),
    ],
)
def test_half_an_s3_address_is_a_matter_of_settings(settings: dict[str, str], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        open_store("s3://files", Settings.model_validate(settings))


def test_wrong_s3_keys_are_a_matter_of_settings(s3: S3) -> None:
    names = {name.lower(): value for name, value in s3.env().items()} | {"s3_secret_access_key": "wrong"}
    store = open_store(f"s3://{s3.bucket}", Settings.model_validate(names))
    with pytest.raises(ConfigError, match="S3_BUCKET"):
        store.head("x")
    store.close()
