"""All settings. The only reader of the environment; built once by whoever starts the process.

Precedence: constructor > environment > `NAME_FILE` (a file that holds the value, for secrets) > `.env` > default.
`env_sample` and `docs/settings.md` are generated from this file: `make lock`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ncr_worker.errors import ConfigError

Words = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(
        lambda value: (
            tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        )
    ),
]
"""A comma-separated list."""

MASK = "**********"
_CALLER = re.compile(r"([A-Za-z0-9._-]{1,50}):([!-~]+)")
_ABOUT_SETTINGS = """\
<!-- Generated from ncr_worker/settings.py by `make lock`. -->
# Settings

Of each name the first of these counts: the environment, the file that `NAME_FILE` names (for secrets), `.env` in the
folder where the process starts, the default. Empty is as good as not set. `ncr settings` shows what holds here,
`ncr settings --check` whether it is valid, `ncr doctor` whether it works. To copy: [env_sample](../env_sample).

"""
_PASSWORD_IN_URL = re.compile(r"""(://[^:/?#\s"'@]*:)[^\s/?#"']+@""")


def mask_passwords(text: str) -> str:
    """`text` with the passwords of all URLs in it masked."""
    return _PASSWORD_IN_URL.sub(rf"\1{MASK}@", text)


class SecretFiles(PydanticBaseSettingsSource):
    """Reads NAME from the file that NAME_FILE names (Docker and Kubernetes secrets)."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{field_name.upper()}_FILE")
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise ConfigError(
                f"{field_name.upper()}_FILE",
                f"cannot read {path} ({error.strerror})",
                "Mount or fix the file",
            ) from error

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    production: bool = Field(
        False,
        description="Refuse to start with what is only safe on a developer's machine (AUTH=off, sandbox addresses)",
    )

    # --- API -----------------------------------------------------------------------------------------
    api_host: str = Field("127.0.0.1", description="Address that the API listens on")
    api_port: int = Field(8001, description="Port of the API")
    cors_origins: Words = Field((), description="Comma-separated origins that browsers may call the API from")
    max_body_bytes: int = Field(16 * 1024 * 1024, gt=0, description="Largest JSON request body, bytes")
    max_batch_jobs: int = Field(10_000, gt=0, description="Most jobs in one batch")
    max_backlog: int = Field(
        100_000, gt=0, description="Jobs that may wait; more are refused with 503 until some have run"
    )
    admission_max_wait: float = Field(
        6 * 3600,
        ge=0,
        description="Seconds that a user's jobs may have to wait, as estimated from sizes and durations; more are "
        "refused with 503. 0: they may wait for ever",
    )
    memory_prediction: str = Field(
        "learned",
        pattern="^(learned|declared)$",
        description="What jobs reserve: what earlier jobs of their kind were seen to need, or what pipelines declare",
    )
    auth: str = Field(
        "off",
        pattern="^(off|keys)$",
        description="Who may use the API: off: whoever reaches it; keys: who sends one of API_KEYS",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="name:key,name:key …; the name is seen in audit trails, and may have several keys",
    )
    flower_port: int = Field(5555, description="Port of Flower")

    # --- Where jobs are remembered -------------------------------------------------------------------
    database_url: str = Field(
        "",
        description="SQL ledger: sqlite:///…, mysql+pymysql://… or postgresql+psycopg://… (wins over DB_*)",
    )
    db_host: str = Field("", description="Database host; with DB_PORT, DB_NAME, DB_USER, DB_PASS a MySQL ledger")
    db_port: int = Field(3306, description="Database port")
    db_name: str = Field("csv_worker", description="Database name")
    db_user: str = Field("root", description="Database user")
    db_pass: SecretStr = Field(SecretStr(""), description="Database password")
    db_pool_size: int = Field(5, gt=0, description="Connections that each process keeps at most")
    db_patience: float = Field(
        60,
        ge=0,
        description="Seconds for which a worker waits for a database that is away before a job fails",
    )
    catalog_url: str = Field("", description="Database of the customer's job files; empty: DATABASE_URL")

    # --- Redis and the broker ------------------------------------------------------------------------
    redis_host: str = Field("127.0.0.1", description="Redis host")
    redis_port: int = Field(6380, description="Redis port")
    redis_url: str = Field("", description="Redis of the live board (wins over REDIS_HOST and REDIS_PORT)")
    celery_broker_url: str = Field("", description="Celery broker: redis://… or pyamqp://…; empty: Redis")
    celery_result_backend: str = Field("", description="Where Celery keeps results; empty: nowhere, none is needed")

    # --- Worker host and memory ----------------------------------------------------------------------
    host_id: str = Field("", description="Name of this worker host, one for each worker; empty: the host name")
    work_folder: Path = Field(Path("work"), description="Local folder for files of running jobs; not on tmpfs")
    celery_worker_concurrency: int = Field(4, gt=0, description="Jobs running at once on this host")
    celery_worker_max_tasks_per_child: int = Field(1000, gt=0, description="A pool child is renewed after so many jobs")
    celery_worker_max_memory_per_child: int = Field(
        200_000, gt=0, description="... or when it retains more than so many KB after a job"
    )
    max_memory_usage_percent: float = Field(
        80, gt=0, le=100, description="Share of the memory limit that jobs and others may use together"
    )
    host_memory_bytes: int = Field(
        0, ge=0, description="Memory limit to assume, bytes; 0: read it from the cgroup or host"
    )
    host_heartbeat: float = Field(10, gt=0, description="Seconds between a host's heartbeats")
    host_lease: float = Field(
        60, gt=0, description="Seconds without a heartbeat after which a host's jobs go to others"
    )
    shutdown_grace: float = Field(
        20,
        ge=0,
        description="Seconds that running jobs get to finish at SIGTERM; below the container's grace period",
    )
    batch_size: int = Field(5, gt=0, description="Jobs of one batch that run at once, over all hosts")
    batch_timeout: float = Field(
        300, gt=0, description="Seconds a job may be refused for memory alone while it is its batch's turn"
    )
    overtake_limit: int = Field(20, ge=0, description="Smaller jobs that may pass one that waits for memory")
    retry_delay: float = Field(
        2, gt=0, description="First wait before a job is tried again, seconds; doubles each time"
    )

    extra_pipelines: Words = Field((), description="Further Python modules that expose PIPELINE, comma-separated")

    # --- Housekeeping, submitted by beat -------------------------------------------------------------
    housekeeping_at: str = Field(
        "15 3 * * *", description="When old jobs are removed: crontab (minute hour day month weekday), UTC; off: never"
    )
    retention_days: float = Field(30, gt=0, description="Days for which a job is kept after its end, with its events")
    receipt_days: float = Field(365, gt=0, description="... a job that has a receipt: so many days instead")
    idempotency_hours: float = Field(24, ge=2, description="Hours for which an Idempotency-Key is remembered")
    stuck_report_at: str = Field(
        "*/30 * * * *", description="When jobs that do not get on are reported: crontab, UTC; off: never"
    )
    stuck_after: float = Field(3600, gt=0, description="Seconds that a job may be due before it is reported as stuck")

    # --- Source: Wasabi or any S3 --------------------------------------------------------------------
    s3_endpoint_url: str = Field("", description="S3 endpoint, e.g. https://s3.wasabisys.com; empty: AWS")
    s3_region: str = Field("us-east-1", description="S3 region")
    s3_bucket: str = Field("", description="Bucket that holds the files of the jobs")
    s3_access_key_id: SecretStr = Field(SecretStr(""), description="S3 access key id")
    s3_secret_access_key: SecretStr = Field(SecretStr(""), description="S3 secret key")
    s3_parallel: int = Field(8, gt=0, description="Objects that one job fetches at once")

    # --- Validator -----------------------------------------------------------------------------------
    validator_url: str = Field("", description="Validator; the zip is posted to VALIDATOR_URL/{sku}")
    validator_api_key: SecretStr = Field(SecretStr(""), description="API key of the validator")
    validator_api_key_header: str = Field("x-bond-api-public-key", description="Header that carries the key")
    validator_timeout: float = Field(300, gt=0, description="Seconds for one whole validation")
    validator_pause: float = Field(
        5, gt=0, description="First pause for all jobs of a host when the validator is down, seconds; doubles up to 60"
    )
    validator_patience: float = Field(
        24 * 3600, ge=0, description="Seconds that a job waits for a validator that is down before it fails"
    )

    # --- Target: SFTP --------------------------------------------------------------------------------
    sftp_host: str = Field("", description="SFTP server")
    sftp_port: int = Field(22, description="SFTP port")
    sftp_user: str = Field("", description="SFTP user")
    sftp_password: SecretStr = Field(SecretStr(""), description="SFTP password; or use SFTP_KEY_PATH")
    sftp_key_path: str = Field("", description="Private key file for SFTP")
    sftp_host_keys: Words = Field(
        (),
        description="Pinned host keys, comma-separated: SHA256:… fingerprints as ssh-keygen -l prints them",
    )
    sftp_root: str = Field(".", description="Folder on the SFTP server under which targets are written")
    sftp_timeout: float = Field(30, gt=0, description="Seconds without any progress after which SFTP is cut")
    sftp_parallel: int = Field(4, gt=0, description="Files that one job uploads at once")
    sftp_publish: str = Field(
        "rename",
        pattern="^(rename|symlink)$",
        description="How a delivery appears: rename (two renames) or symlink (a link is switched in one step)",
    )
    sftp_file_mode: str = Field(
        "", pattern="^(0?[67][0-7]{2})?$", description="Mode of delivered files, e.g. 0644; empty: the server's default"
    )
    sftp_folder_mode: str = Field(
        "", pattern="^(0?7[0-7]{2})?$", description="Mode of new folders, e.g. 0755; empty: the server's default"
    )
    sftp_backups: int = Field(0, ge=0, description="Earlier deliveries kept hidden beside each target")
    layout_file: str = Field("", description="TOML file with layout rules; empty: the built-in rules")

    # --- Logs ----------------------------------------------------------------------------------------
    log_level: str = Field(
        "INFO", pattern="^(?i:debug|info|warning|error)$", description="DEBUG, INFO, WARNING or ERROR"
    )
    log_format: str = Field(
        "auto", pattern="^(auto|json|console)$", description="auto: console on a terminal, else json"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, SecretFiles(settings_cls), dotenv_settings

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.host_lease < 3 * self.host_heartbeat:
            raise ConfigError(
                "HOST_LEASE",
                f"{self.host_lease:g} s is less than three heartbeats of {self.host_heartbeat:g} s",
                "Raise HOST_LEASE or lower HOST_HEARTBEAT",
            )
        if self.idempotency_hours > 24 * min(self.retention_days, self.receipt_days):
            raise ConfigError(
                "IDEMPOTENCY_HOURS",
                f"{self.idempotency_hours:g} h is longer than jobs are kept (RETENTION_DAYS, RECEIPT_DAYS)",
                "Lower it: a key must not outlive the jobs that it stands for",
            )
        if not self.callers and self.auth == "keys":
            raise ConfigError("API_KEYS", "empty, but AUTH is keys", "Set API_KEYS=name:key, or API_KEYS_FILE")
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask_passwords(value) if isinstance(value, str) else value

    @property
    def callers(self) -> tuple[tuple[str, str], ...]:
        """(name, API key) of all who may use the API. Raises ConfigError."""
        entries = re.split(r"[,\s]+", self.api_keys.get_secret_value().strip(", \t\r\n"))
        found = [_CALLER.fullmatch(entry) for entry in entries if entry]
        if not all(found) or len({match[2] for match in found if match}) < len(found):
            raise ConfigError(
                "API_KEYS", "not all entries are name:key, or two have the same key", "Write name:key,name:key"
            )
        return tuple((match[1], match[2]) for match in found if match)

    # --- what the precedence rules give ---------------------------------------------------------------
    @property
    def ledger_url(self) -> str:
        """DATABASE_URL, else DB_*, else SQLite beside the work folder."""
        if self.database_url:
            return self.database_url
        if self.db_host:
            password = quote(self.db_pass.get_secret_value(), safe="")
            user = quote(self.db_user, safe="")
            return f"mysql+pymysql://{user}:{password}@{self.db_host}:{self.db_port}/{self.db_name}?charset=utf8mb4"
        return f"sqlite:///{self.work_folder.absolute() / 'ncr.sqlite3'}"

    @property
    def board_url(self) -> str:
        return self.redis_url or f"redis://{self.redis_host}:{self.redis_port}/0"

    @property
    def broker_url(self) -> str:
        return self.celery_broker_url or self.board_url

    @property
    def jobs_folder(self) -> Path:
        """Work folders of this host's jobs: `{jobs_folder}/{job id}`."""
        return self.work_folder.absolute() / "jobs" / self.host

    @property
    def host(self) -> str:
        return self.host_id or socket.gethostname()


def load_settings(**overrides: Any) -> Settings:
    """Settings of this process. Raises ConfigError that names each wrong setting."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).upper() or "settings"
        raise ConfigError(name, first["msg"], "See env_sample for what each setting means") from error


def env_sample(settings: type[BaseSettings] = Settings) -> str:
    """The text of `env_sample`: every setting with what it means and its default, commented out."""
    lines = ["# Copy to .env and uncomment what differs. The environment wins over .env."]
    for name, field in settings.model_fields.items():
        lines += ["", f"# {field.description}"]
        lines += [f"# Secret: {name.upper()}_FILE may name a file that holds it."] if _is_secret(field) else []
        lines += [f"#{name.upper()}={_default(field)}"]
    return "\n".join(lines) + "\n"


def settings_table(settings: type[BaseSettings] = Settings) -> str:
    """The text of `docs/settings.md`: every setting in a table."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = f"`{_default(field)}`" if _default(field) else ""
        secret = " (secret)" if _is_secret(field) else ""
        cells = (f"`{name.upper()}`{secret}", default, field.description or "")
        lines.append("| {} |".format(" | ".join(cell.replace("|", "\\|") for cell in cells)))
    return _ABOUT_SETTINGS + "\n".join(lines) + "\n"


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr


def _default(field: FieldInfo) -> str:
    default = field.default.get_secret_value() if _is_secret(field) else field.default
    return ",".join(default) if isinstance(default, tuple) else str(default)
