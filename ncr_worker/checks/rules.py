"""Settings that contradict each other, and what is only safe on a developer's machine. Nothing is connected."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from ncr_worker.checks.finding import Finding, error, ok, warning
from ncr_worker.settings import Settings

STALLED_QUERY = 15.0
"""Seconds after which ncr_worker.sql gives a dead connection to a server up."""
CONTAINER_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL on Kubernetes, unless told otherwise."""
GIVING_BACK = 5.0
"""Seconds that a worker may take to give jobs back after its grace."""
WELL_KNOWN = frozenset(
    ("admin", "changeme", "change-me", "guest", "minio", "minioadmin", "password", "root", "secret", "test")
)
"""Credentials from examples and default installations."""


def limits(settings: Settings) -> Iterator[Finding]:
    """HOST_LEASE against HOST_HEARTBEAT is checked by Settings itself."""
    what = "times and sizes"
    found = False
    for finding in (*_times(settings, what), *_sizes(settings, what)):
        found = True
        yield finding
    if not found:
        yield ok(f"{what} do not contradict each other; production mode is {'on' if settings.production else 'off'}")


def _times(settings: Settings, what: str) -> Iterator[Finding]:
    patience = settings.validator_patience
    for name, least in (
        ("VALIDATOR_PAUSE", settings.validator_pause),
        ("VALIDATOR_TIMEOUT", settings.validator_timeout),
    ):
        if 0 < patience < least:
            problem = f"{patience:g} s end before {name} of {least:g} s: no job would be tried a second time"
            yield error(what, problem, "VALIDATOR_PATIENCE", f"Raise it above {name}, or set it to 0 to fail at once")
            break
    if settings.shutdown_grace + GIVING_BACK > CONTAINER_GRACE:
        problem = f"{settings.shutdown_grace:g} s: containers are killed {CONTAINER_GRACE:g} s after SIGTERM by default"
        remedy = "Lower it, or give the container so much longer (terminationGracePeriodSeconds, stop_grace_period)"
        yield warning(what, problem, "SHUTDOWN_GRACE", remedy)
    if settings.host_lease < settings.host_heartbeat + STALLED_QUERY and not settings.ledger_url.startswith("sqlite"):
        problem = f"{settings.host_lease:g} s: one database connection that dies can cost a healthy host its jobs"
        remedy = f"Let it be at least HOST_HEARTBEAT + {STALLED_QUERY:g} s"
        yield warning(what, problem, "HOST_LEASE", remedy)
    if settings.batch_timeout < settings.validator_timeout:
        problem = (
            f"{settings.batch_timeout:g} s is less than VALIDATOR_TIMEOUT of {settings.validator_timeout:g} s: a job "
            "that waits for another one's memory can fail because that one's validation takes long"
        )
        yield warning(what, problem, "BATCH_TIMEOUT", "Raise it, or lower VALIDATOR_TIMEOUT")


def _sizes(settings: Settings, what: str) -> Iterator[Finding]:
    if settings.max_batch_jobs > settings.max_backlog:
        problem = f"{settings.max_batch_jobs:,} is over MAX_BACKLOG of {settings.max_backlog:,}: the largest batch "
        yield warning(what, f"{problem}can never be taken in", "MAX_BATCH_JOBS", "Lower it, or raise MAX_BACKLOG")


def exposure(settings: Settings) -> Iterator[Finding]:
    """Production mode: who may call the API, from where."""
    if not settings.production:
        return
    what = "access to the API"
    if settings.auth == "off":
        yield error(what, "is off, and production mode is on", "AUTH", "Set AUTH=keys and API_KEYS")
    if "*" in settings.cors_origins:
        problem = "lets every website's scripts call the API, and production mode is on"
        yield error(what, problem, "CORS_ORIGINS", "Name the origins that need it")
    yield from _ledger_in_production(settings)


def credentials(settings: Settings) -> Iterator[Finding]:
    """Production mode: credentials and addresses that only a sandbox has."""
    if not settings.production:
        return
    what, because = "services outside", ", and production mode is on"
    secrets = {
        "S3_ACCESS_KEY_ID": settings.s3_access_key_id,
        "S3_SECRET_ACCESS_KEY": settings.s3_secret_access_key,
        "SFTP_PASSWORD": settings.sftp_password,
    }
    # On AWS itself keys may come from the machine's role, and SFTP may use a key file.
    spared = set() if settings.s3_endpoint_url else {"S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"}
    spared |= {"SFTP_PASSWORD"} if settings.sftp_key_path or not settings.sftp_host else set()
    for name, secret in secrets.items():
        value = secret.get_secret_value()
        if not value and name not in spared:
            yield error(what, f"is empty{because}", name, f"Set it, or {name}_FILE to a file that holds it")
        elif value.lower() in WELL_KNOWN:
            yield error(what, f"is a well-known default{because}", name, "Have the service's owner give you another")
    for name, address in (("S3_ENDPOINT_URL", settings.s3_endpoint_url), ("SFTP_HOST", settings.sftp_host)):
        if _is_loopback(address):
            yield error(what, f"{address} is this machine, as in a sandbox{because}", name, "Name the real server")
    if settings.validator_url.startswith("http://") and not _is_loopback(settings.validator_url):
        problem = "is http://: the key and the files can be read on the way"
        yield warning(what, problem, "VALIDATOR_URL", "Use https://")
    if settings.s3_endpoint_url.startswith("http://") and not _is_loopback(settings.s3_endpoint_url):
        yield warning(what, "is http://: the files can be read on the way", "S3_ENDPOINT_URL", "Use https://")


def host_keys(settings: Settings) -> Iterator[Finding]:
    """In any mode: credentials go only to a server that is known."""
    if not settings.sftp_host:
        return
    what = "pinned SFTP host keys"
    scan = f"ssh-keyscan -p {settings.sftp_port} {settings.sftp_host} | ssh-keygen -lf -"
    remedy = f"Get the SHA256:… fingerprint from the server's owner; to compare: {scan}"
    if not settings.sftp_host_keys:
        yield error(what, "is empty, so no server would be trusted", "SFTP_HOST_KEYS", remedy)
    for pin in settings.sftp_host_keys:
        if not pin.startswith("SHA256:"):
            yield error(what, f"{pin[:30]!r} is no fingerprint", "SFTP_HOST_KEYS", remedy)
    yield ok(f"{what}: {len(settings.sftp_host_keys)}")


def _ledger_in_production(settings: Settings) -> Iterator[Finding]:
    what, url = "ledger", make_url(settings.ledger_url)
    setting = "DB_PASS" if settings.db_host and not settings.database_url else "DATABASE_URL"
    if url.get_backend_name() == "sqlite":
        problem = "is SQLite: one worker host only, and no copy elsewhere"
        yield warning(what, problem, setting, "Use PostgreSQL or MySQL for several hosts; back the file up")
    elif not url.password:
        yield warning(what, "has no password", setting, "Set one, unless the server knows us in another way")


def _is_loopback(address: str) -> bool:
    """Of a URL or a host name."""
    name = urlsplit(address if "//" in address else f"//{address}").hostname or ""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
