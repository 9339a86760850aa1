"""What S3 and the local disk can do to a delivery: it waits or fails, and never goes on with a partial set."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from deliveries import STAGES, World, a_world, as_delivered, largest
from engine import eventually
from proxy import Proxy, proxy_to
from small_disk import small_disk

from ncr_worker.errors import NcrError, Transient
from ncr_worker.pipelines.deliver.model import Delivery
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.stores import s3 as s3_module

MIB = 1024 * 1024
MULTIPART = '"0123456789abcdef0123456789abcdef-2"'
"""The ETag after an upload in parts is not the content's MD5: then its length alone tells."""
THROTTLED = b"<Error><Code>RequestRateLimitExceeded</Code><Message>Slow down</Message></Error>"


@pytest.fixture
def path(s3: S3) -> Iterator[Proxy]:
    with proxy_to(s3.port) as proxy:
        yield proxy


@pytest.fixture
def world(s3: S3, validator: Validator, sftp: SFTP, tmp_path: Path, path: Proxy) -> Iterator[World]:
    """All that goes to S3 goes through the proxy."""
    world = a_world(s3, validator, sftp, tmp_path, s3_endpoint_url=f"http://127.0.0.1:{path.port}")
    yield world
    world.close()


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def of_the_model(make: Callable[[], bytes | None]) -> Callable[[bytes], bytes | None]:
    """Answers requests for the model's content in the server's stead."""

    def answer(request: bytes) -> bytes | None:
        first = request.partition(b"\r\n")[0]
        return make() if first.startswith(b"GET ") and b"chair.glb" in first else None

    return answer


def fetch_fails(world: World, parcel: Delivery) -> NcrError:
    run = world.run()
    with pytest.raises(NcrError) as caught:
        STAGES["fetch"](run, parcel)
    whole = [path for path in (run.folder / "files").iterdir() if path.suffix != ".part"]
    model = largest(parcel)
    assert model.local_name not in [path.name for path in whole], "what is not whole has no name"
    return caught.value


def test_throttling_as_wasabi_does_it_is_waited_out(world: World, path: Proxy) -> None:
    left = 3

    def throttle() -> bytes | None:
        nonlocal left
        left -= 1
        return http("400 Bad Request", THROTTLED, "Content-Type: application/xml") if left >= 0 else None

    run = world.run()
    parcel = world.deliver(run, until="plan")
    path.answer = of_the_model(throttle)
    for _ in range(3):
        with pytest.raises(Transient) as caught:
            STAGES["fetch"](run, parcel)
        assert caught.value.code == "s3_throttled"
        assert caught.value.retry_in
    for name in ("fetch", "pack", "validate", "prepare", "upload", "publish", "confirm"):
        parcel = STAGES[name](run, parcel)
    assert world.delivered() == as_delivered(world)


def test_a_plan_that_is_throttled_is_worth_another_try(world: World, path: Proxy) -> None:
    path.answer = lambda request: http("400 Bad Request", b"") if request.startswith(b"HEAD ") else None
    with pytest.raises(Transient):
        world.deliver(world.run(), until="plan")
    path.answer = None
    world.deliver(world.run(), until="plan")


def test_a_body_that_is_cut_short_is_no_file(world: World, path: Proxy) -> None:
    parcel = world.deliver(world.run(), until="plan")
    path.drop_after = 1 * MIB
    error = fetch_fails(world, parcel)
    assert isinstance(error, Transient)
    assert error.code in ("s3_failed", "s3_unreachable")


@pytest.mark.parametrize(
    ("harm", "etag"),
    [("shorter", None), ("longer", None), ("other bytes", None), ("shorter", MULTIPART), ("longer", MULTIPART)],
)
def test_a_body_that_is_not_what_was_planned_is_no_file(world: World, path: Proxy, harm: str, etag: str | None) -> None:
    parcel = world.deliver(world.run(), until="plan")
    model = largest(parcel)
    planned = model.model_copy(update={"etag": etag or model.etag})
    parcel = parcel.evolve(items=tuple(planned if item is model else item for item in parcel.items))
    content = world.names["GLB_files/chair.glb"]
    wrong = {"shorter": content[:-1], "longer": content + b"x", "other bytes": b"x" + content[1:]}[harm]
    date = "Last-Modified: Sun, 01 Nov 2026 00:00:00 GMT"
    path.answer = of_the_model(lambda: http("200 OK", wrong, f"ETag: {planned.etag}", date))
    error = fetch_fails(world, parcel)
    assert isinstance(error, Transient)
    assert error.code == "s3_failed"


class Slow:
    """A digest that is stuck until it `may` go on."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.chunks = 0

    def update(self, _chunk: bytes) -> None:
        self.may.wait()
        self.chunks += 1


@pytest.mark.parametrize("others", [0, 1])
def test_reading_waits_for_a_digest_that_is_two_chunks_behind(others: int) -> None:
    slow, read = Slow(), 0

    def reading() -> None:
        nonlocal read
        with s3_module._hashing([*(hashlib.sha256() for _ in range(others)), cast(Any, slow)], 1 << 40) as update:
            for _ in range(9):
                update(b"chunk")
                read += 1

    thread = threading.Thread(target=reading)
    thread.start()
    try:
        assert eventually(lambda: read >= s3_module.BEHIND)
        thread.join(0.2)
        assert (thread.is_alive(), read) == (True, s3_module.BEHIND)
    finally:
        slow.may.set()
        thread.join()
    assert (read, slow.chunks) == (9, 9)


class Weary:
    """A digest that fails at its second chunk."""

    def __init__(self) -> None:
        self.left = 1

    def update(self, _chunk: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise MemoryError("no memory for a digest")

    def hexdigest(self) -> str:
        return ""


@pytest.fixture(params=[0, 1 << 40], ids=["beside the reading", "within it"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are worked out so."""
    monkeypatch.setattr(s3_module, "LARGE", request.param)


@pytest.mark.usefixtures("either_way")
def test_a_digest_that_fails_ends_the_fetch_and_leaves_no_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel, run = world.deliver(world.run(), until="plan"), world.run()
    monkeypatch.setattr(s3_module, "hashlib", SimpleNamespace(sha256=Weary, md5=hashlib.md5))
    with pytest.raises(MemoryError, match="no memory for a digest"):
        STAGES["fetch"](run, parcel)
    assert largest(parcel).local_name not in [path.name for path in (run.folder / "files").iterdir()]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("hash")]


@pytest.mark.usefixtures("either_way")
def test_what_is_fetched_has_the_digest_of_its_content(world: World) -> None:
    parcel = world.deliver(world.run(), until="fetch")
    content = world.names["GLB_files/chair.glb"]
    assert len(content) > 2 * MIB, "more than one chunk"
    assert largest(parcel).sha256 == hashlib.sha256(content).hexdigest()


def test_a_disk_that_has_room_for_almost_all_is_full(world: World) -> None:
    """A write may then be short without an error."""
    run = world.run()
    parcel = world.deliver(run, until="plan")
    model = largest(parcel)
    parcel = parcel.evolve(items=(model,))
    run.folder.rmdir()
    with small_disk(run.folder, model.size // 4096 * 4096) as resize:
        with pytest.raises(Transient) as caught:
            STAGES["fetch"](run, parcel)
        assert caught.value.code == "disk_full"
        del caught
        resize(2 * model.size)
        STAGES["fetch"](run, parcel)


def test_a_full_local_disk_is_named_and_room_is_all_that_is_needed(world: World) -> None:
    run = world.run()
    parcel = world.deliver(run, until="plan")
    run.folder.rmdir()
    with small_disk(run.folder, 1 * MIB) as resize:
        for stage, room in (("fetch", 5 * MIB), ("pack", 16 * MIB)):
            with pytest.raises(Transient) as caught:
                STAGES[stage](run, parcel)
            assert caught.value.code == "disk_full"
            assert "disk is full" in str(caught.value)
            del caught  # its traceback keeps files open, and so the disk
            resize(room)
            parcel = STAGES[stage](run, parcel)
        for name in ("validate", "prepare", "upload", "publish", "confirm"):
            parcel = STAGES[name](run, parcel)
    assert world.delivered() == as_delivered(world)
