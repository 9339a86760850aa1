"""The schema of the ledger's database: upgrade it, or tell whether it is current."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ncr_worker.errors import ConfigError
from ncr_worker.sql import Database

MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(database: Database) -> str:
    """Bring the schema to the newest revision; its name. Safe to call again. Raises DatabaseAway."""
    database.read(lambda _connection: None)  # Alembic would only know the driver's own error
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return head()


@cache
def head() -> str:
    """The newest revision that this version of ncr_worker knows. Read once: it means to load every migration."""
    return str(ScriptDirectory(str(MIGRATIONS)).get_current_head())


def require_current(database: Database) -> None:
    """Raises ConfigError when the schema is missing, old, or newer than this version; DatabaseAway."""
    revision = database.read(lambda connection: MigrationContext.configure(connection).get_current_revision())
    if revision != head():
        raise ConfigError(
            "DATABASE_URL",
            f"the schema is at revision {revision or 'none'}, this version needs {head()}",
            "Run: ncr db upgrade",
        )
