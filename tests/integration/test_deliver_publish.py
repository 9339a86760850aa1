"""Publishing after a crash at any point: never a second delivery, never none."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from deliveries import STAGES, LooseRun, World, as_delivered, largest

from ncr_worker.errors import LostOwnership, Rejected, StageError, Transient
from ncr_worker.pipelines.deliver.model import Delivery
from ncr_worker.pipelines.deliver.publish import abandon
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.stores.sftp import SftpTarget

OLD = b"the delivery before"


@pytest.fixture(params=[False, True], ids=["first", "again"])
def uploaded(request: pytest.FixtureRequest, world: World) -> tuple[LooseRun, Delivery]:
    """A delivery of which all is uploaded and nothing is published: the first one, or over an older one."""
    if request.param:
        sheet = world.names["Docs/sheet.csv"]
        world.put("Docs/sheet.csv", OLD)
        world.deliver(world.run())
        world.put("Docs/sheet.csv", sheet)
    run = world.run()
    return run, world.deliver(run, until="upload")


def rename(world: World, old: str, new: str) -> None:
    (world.root / old).rename(world.root / new)


def first_rename(world: World, parcel: Delivery) -> None:
    if parcel.replaces:
        rename(world, parcel.folder, parcel.backup)


def both_renames(world: World, parcel: Delivery) -> None:
    first_rename(world, parcel)
    rename(world, parcel.staging, parcel.folder)


def nothing(_world: World, _parcel: Delivery) -> None:
    """Ended before it began."""


@pytest.mark.parametrize("crashed_after", [nothing, first_rename, both_renames])
def test_publish_completes_what_a_crash_left(
    world: World, uploaded: tuple[LooseRun, Delivery], crashed_after: Callable[[World, Delivery], None]
) -> None:
    run, parcel = uploaded
    crashed_after(world, parcel)
    again = world.run(job_id=run.job.id)
    for name in ("publish", "publish", "confirm"):  # once more than needed
        parcel = STAGES[name](again, parcel)
    assert world.delivered() == as_delivered(world)
    assert world.hidden() == []


@pytest.mark.parametrize("crashed_after", [nothing, first_rename])
def test_a_job_that_is_given_up_leaves_the_previous_delivery(
    world: World, uploaded: tuple[LooseRun, Delivery], crashed_after: Callable[[World, Delivery], None]
) -> None:
    run, parcel = uploaded
    crashed_after(world, parcel)
    abandon(run, parcel)
    assert world.hidden() == []
    assert world.delivered() == (as_delivered(world) | {"docs/sheet.csv": OLD} if parcel.replaces else {})


def test_when_the_second_rename_is_refused_the_previous_delivery_comes_back(
    world: World, uploaded: tuple[LooseRun, Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, parcel = uploaded
    real = SftpTarget.rename

    def refuse_staging(self: SftpTarget, old: str, new: str) -> None:
        if parcel.staging in old:
            raise Transient("refused", code="sftp_failed")
        real(self, old, new)

    monkeypatch.setattr(SftpTarget, "rename", refuse_staging)
    with pytest.raises(Transient, match="refused"):
        STAGES["publish"](run, parcel)
    assert bool(world.delivered()) == parcel.replaces
    monkeypatch.undo()
    STAGES["publish"](run, parcel)
    assert world.delivered() == as_delivered(world)


def test_a_lost_answer_to_the_second_rename_does_no_harm(
    world: World, uploaded: tuple[LooseRun, Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, parcel = uploaded
    real = SftpTarget.rename

    def lose_answer(self: SftpTarget, old: str, new: str) -> None:
        real(self, old, new)
        if parcel.staging in old:
            raise Transient("cut", code="sftp_cut")

    monkeypatch.setattr(SftpTarget, "rename", lose_answer)
    with pytest.raises(Transient):
        STAGES["publish"](run, parcel)
    monkeypatch.undo()
    STAGES["publish"](run, parcel)
    assert world.delivered() == as_delivered(world)


def test_a_run_that_lost_the_job_publishes_nothing(world: World, uploaded: tuple[LooseRun, Delivery]) -> None:
    run, parcel = uploaded
    before = world.delivered()
    run.before_effect = _lost
    with pytest.raises(LostOwnership):
        STAGES["publish"](run, parcel)
    assert world.delivered() == before


def _lost() -> None:
    raise LostOwnership("by test")


@pytest.mark.parametrize("old_is_aside", [False, True])
def test_when_others_remove_the_staging_folder_the_previous_delivery_stays(
    world: World, uploaded: tuple[LooseRun, Delivery], old_is_aside: bool
) -> None:
    run, parcel = uploaded
    if old_is_aside:
        first_rename(world, parcel)
    before = world.delivered() or ({"docs/sheet.csv": OLD} if parcel.replaces else {})
    shutil.rmtree(world.root / parcel.staging)
    with pytest.raises(Rejected) as caught:
        STAGES["publish"](run, parcel)
    assert caught.value.code == "staging_lost"
    assert world.delivered().get("docs/sheet.csv") == before.get("docs/sheet.csv")


def test_an_earlier_round_that_published_is_not_published_again(
    world: World, uploaded: tuple[LooseRun, Delivery]
) -> None:
    run, parcel = uploaded
    STAGES["publish"](run, parcel)  # then the job failed, and a person retries it: a new round from the start
    again = world.run(job_id=run.job.id, round_=2)
    world.deliver(again)
    assert world.delivered() == as_delivered(world)
    assert world.hidden() == []


@pytest.mark.parametrize("uploaded", [True], indirect=True, ids=["again"])
def test_what_others_put_at_the_target_between_the_renames_is_not_touched(
    world: World, uploaded: tuple[LooseRun, Delivery]
) -> None:
    run, parcel = uploaded
    first_rename(world, parcel)
    (world.root / parcel.folder).mkdir()
    (world.root / parcel.folder / "foreign.txt").write_text("not ours")
    with pytest.raises(StageError) as caught:
        STAGES["publish"](run, parcel)
    assert caught.value.code == "sftp_not_as_planned"
    assert world.delivered() == {"foreign.txt": b"not ours"}
    assert (world.root / parcel.staging).exists(), "what is to be delivered is still there"


def test_a_cut_upload_goes_on_where_it_was_cut(world: World) -> None:
    run = world.run()
    parcel = world.deliver(run, until="prepare")
    partial = world.staged(parcel, largest(parcel))
    content = world.names["GLB_files/chair.glb"]
    # Marked, so that one sees which part was sent again.
    partial.write_bytes(b"x" * 2_000_000)
    parcel = STAGES["upload"](run, parcel)
    assert partial.read_bytes() == b"x" * 2_000_000 + content[2_000_000:]


def test_a_connection_that_dies_is_made_anew(world: World, sftp: SFTP) -> None:
    run = world.run()
    parcel = world.deliver(run, until="prepare")
    sftp.kill()
    try:
        with pytest.raises(Transient) as caught:
            STAGES["upload"](run, parcel)
        assert caught.value.code in ("sftp_cut", "sftp_unreachable")
    finally:
        sftp.start()
    parcel = STAGES["publish"](run, STAGES["upload"](run, parcel))
    assert world.delivered() == as_delivered(world)
