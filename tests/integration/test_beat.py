"""Beat submits each tick once, whatever is paused, full or away, and needs neither broker nor file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ledgers import together
from services import MariaDB
from serving import HOST, migrated

from ncr_worker.app import FIRST, App
from ncr_worker.errors import Busy, ConfigError
from ncr_worker.history import Line, Wanted
from ncr_worker.job import State
from ncr_worker.ledger import Offer
from ncr_worker.ledger.pauses import Scope
from ncr_worker.pipeline import GIB
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.sandbox.process import ServerProcess, free_port
from ncr_worker.settings import Settings
from ncr_worker.worker.celery_app import create_celery
from ncr_worker.worker.schedule import Beat

REPORT = "stuck_report"


def settings_for(url: str, folder: Path, **changes: Any) -> Settings:
    """No Redis: nobody listens at its port."""
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    usual: dict[str, Any] = {"database_url": url, "redis_url": nobody, "work_folder": folder / "work"}
    return Settings(_env_file=None, **usual | changes)


@contextmanager
def beating(settings: Settings, now: str) -> Iterator[Beat]:
    with create_celery(settings) as celery:
        beat = Beat(app=celery)
        turn(beat, now)
        yield beat
        beat.close()


def turn(beat: Beat, now: str) -> None:
    """Set its clock."""
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    beat.clock = lambda: moment


@contextmanager
def app_of(settings: Settings) -> Iterator[App]:
    app = App(settings)
    yield app
    app.close()


def jobs(app: App, kind: str) -> list[Line]:
    return app.history.jobs(Wanted(kind=kind))


def end_all(app: App) -> None:
    for picked in app.ledger.queue.pick(Offer(HOST, 10, GIB, True, GIB)):
        claim = app.ledger.work.claim(picked.job_id, picked.token, "1-x", "report")
        assert claim is not None
        app.ledger.work.finish(claim.job, State.SUCCEEDED)


def test_each_tick_is_one_job_however_many_beats_there_are(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(migrated(database_url), tmp_path)
    with (
        app_of(settings) as app,
        beating(settings, "2026-01-02T03:40") as one,
        beating(settings, "2026-01-02T03:40") as two,
    ):
        assert together(Beat.tick, [one, two]) == [60, 60]
        for kind in ("housekeeping", REPORT):
            [line] = jobs(app, kind)
            assert [event.actor for event in app.ledger.reads.events(line.id)] == ["beat"]
        turn(one, "2026-01-02T03:59:30")
        assert one.tick() == 30
        end_all(app)
        for beat in (one, two):
            beat.tick()
        assert (len(jobs(app, "housekeeping")), len(jobs(app, REPORT))) == (1, 1)
        for beat in (one, two):
            turn(beat, "2026-01-02T04:00:00.1")
            beat.tick()
        assert (len(jobs(app, "housekeeping")), len(jobs(app, REPORT))) == (1, 2)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(migrated(f"sqlite:///{tmp_path / 'ncr.sqlite3'}"), tmp_path)


def test_while_the_job_of_a_tick_is_unfinished_the_next_one_is_left_out(settings: Settings) -> None:
    with app_of(settings) as app, beating(settings, "2026-01-02T04:01") as beat:
        beat.tick()
        turn(beat, "2026-01-02T04:31")
        beat.tick()
        assert len(jobs(app, REPORT)) == 1
        end_all(app)
        turn(beat, "2026-01-02T05:01")
        beat.tick()
        assert len(jobs(app, REPORT)) == 2


@pytest.mark.parametrize(
    ("now", "made_up"), [("2026-01-02T15:10", 1), ("2026-01-02T15:20", 0), ("2026-01-02T03:14", 0)]
)
def test_a_beat_that_was_away_makes_up_for_the_newest_tick_while_it_is_young(
    settings: Settings, now: str, made_up: int
) -> None:
    with app_of(settings) as app, beating(settings, now) as beat:
        beat.tick()
        assert len(jobs(app, "housekeeping")) == made_up
        assert len(jobs(app, REPORT)) == 1, "of many half hours the newest"


def test_a_beat_that_starts_again_submits_no_tick_twice(settings: Settings) -> None:
    with app_of(settings) as app:
        for now in ("2026-01-02T04:01", "2026-01-02T04:02"):
            with beating(settings, now) as beat:
                beat.tick()
            end_all(app)
        assert (len(jobs(app, "housekeeping")), len(jobs(app, REPORT))) == (1, 1)


def test_neither_a_pause_nor_a_full_backlog_stops_it_and_its_jobs_go_first(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_backlog": 1})
    with app_of(settings) as app, beating(settings, "2026-01-02T04:01") as beat:
        order = DeliverArgs(job_id="A-1", username="ann", campaign="spring")
        app.submit("deliver", order)
        app.pause(Scope.INTAKE, actor="ann")
        with pytest.raises(Busy):
            app.submit("deliver", order.model_copy(update={"job_id": "A-2"}))
        beat.tick()
        picked = app.ledger.queue.pick(Offer(HOST, 10, GIB, True, GIB))
        assert [one.kind for one in picked] == ["housekeeping", REPORT, "deliver"]
        assert app.ledger.reads.job(picked[0].job_id).priority == FIRST


def test_a_tick_outlives_a_database_that_is_away(mariadb: MariaDB, tmp_path: Path) -> None:
    url = migrated(mariadb.create_database())
    settings = settings_for(url, tmp_path)
    try:
        with beating(settings, "2026-01-02T04:01") as beat:
            mariadb.kill()
            assert beat.tick() == 5
            turn(beat, "2026-01-02T04:02")
            assert beat.tick() == 5
            mariadb.start()
            turn(beat, "2026-01-02T04:03")
            assert beat.tick() == 60
            with app_of(settings) as app:
                assert (len(jobs(app, "housekeeping")), len(jobs(app, REPORT))) == (1, 1)
    finally:
        mariadb.start()
        mariadb.drop_database(url)


def test_what_is_off_is_never_submitted(settings: Settings) -> None:
    settings = settings.model_copy(update={"housekeeping_at": "off", "stuck_report_at": "off"})
    with app_of(settings) as app, beating(settings, "2026-01-02T04:01") as beat:
        assert beat.tick() == beat.max_interval
        assert app.history.queued() == 0


def test_a_wrong_time_ends_it_at_the_start_naming_the_setting(settings: Settings) -> None:
    wrong = settings.model_copy(update={"stuck_report_at": "every day"})
    with create_celery(wrong) as celery, pytest.raises(ConfigError, match="STUCK_REPORT_AT: 'every day'"):
        Beat(app=celery)


class BeatProcess(ServerProcess):
    """Beat as an operator starts it, with no broker anywhere; ready when its first tick is a job."""

    name = "beat"
    start_patience = 120.0

    def __init__(self, folder: Path, settings: Settings, args: Sequence[str], ready: Callable[[], bool]) -> None:
        super().__init__(folder)
        self.settings = settings
        self.args = args
        self.is_ready = ready

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", *self.args]

    def ready(self) -> bool:
        return self.is_ready()

    def env(self) -> dict[str, str]:
        settings = self.settings
        urls = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
        return urls | {"WORK_FOLDER": str(settings.work_folder), "HOST_ID": HOST}

    def environment(self) -> dict[str, str]:
        return self.env()


@pytest.mark.parametrize(
    "args", [["ncr_worker", "beat"], ["celery", "-A", "ncr_worker.worker", "beat"]], ids=["ncr", "celery"]
)
def test_both_commands_submit_without_a_broker_and_keep_no_file(
    settings: Settings, tmp_path: Path, args: list[str]
) -> None:
    with app_of(settings) as app:

        def submitted() -> bool:
            return len(jobs(app, REPORT)) == 1

        with BeatProcess(tmp_path / "beat", settings, args, submitted):
            pass
        assert list(settings.work_folder.iterdir()) == []
        assert {path.name for path in (tmp_path / "beat").iterdir()} == {"beat.log"}
