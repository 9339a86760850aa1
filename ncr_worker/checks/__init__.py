"""One list of checks: `ncr doctor` runs all of them, and each process the ones that guard it before it serves.

A new check is a function here that gives findings, and a line in CHECKS. None changes anything that lasts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from ncr_worker.checks import databases, host, outside, queues, rules
from ncr_worker.checks.finding import Check, Finding, Level, Process, error
from ncr_worker.errors import ConfigError, NcrError
from ncr_worker.logs import masker
from ncr_worker.settings import Settings

__all__ = ["CHECKS", "Check", "Finding", "Level", "Process", "examine", "guard"]

PATIENCE = 20.0
"""Seconds for all checks together."""

_ALL = frozenset(Process)
_WORKER = frozenset({Process.WORKER})

CHECKS = (
    Check("limits", rules.limits, "HOST_LEASE", _ALL),
    Check("exposure", rules.exposure, "PRODUCTION", frozenset({Process.API})),
    Check("credentials", rules.credentials, "PRODUCTION", _WORKER),
    Check("host keys", rules.host_keys, "SFTP_HOST_KEYS", _WORKER),
    Check("work folder", host.work_folder, "WORK_FOLDER", _WORKER),
    Check("memory", host.memory, "HOST_MEMORY_BYTES"),
    Check("database", databases.ledger, "DATABASE_URL", _ALL),
    Check("connections", databases.connections, "DB_POOL_SIZE"),
    Check("catalog", databases.catalog, "CATALOG_URL"),
    Check("redis", queues.board, "REDIS_URL", _ALL),
    Check("broker", queues.broker, "CELERY_BROKER_URL", _ALL),
    Check("results", queues.results, "CELERY_RESULT_BACKEND"),
    Check("s3", outside.bucket, "S3_ENDPOINT_URL"),
    Check("validator", outside.validator, "VALIDATOR_URL"),
    Check("sftp", outside.sftp, "SFTP_HOST"),
)


def examine(
    settings: Settings, checks: Sequence[Check] = CHECKS, *, patience: float = PATIENCE
) -> Iterator[tuple[str, Finding]]:
    """All of them at once; (name of the check, finding) in their order, after `patience` seconds at most."""
    mask = masker(settings)
    deadline = time.monotonic() + patience
    for check, answer in [(check, _begin(check, settings)) for check in checks]:
        try:
            findings = answer.result(max(deadline - time.monotonic(), 0))
        except TimeoutError:
            remedy = "Check the address; a firewall may swallow what is sent there"
            findings = [error(check.name, f"no answer within {patience:g} s", check.setting, remedy)]
        for finding in findings:
            yield check.name, finding.masked(mask)


def guard(settings: Settings, process: Process, checks: Sequence[Check] = CHECKS) -> list[str]:
    """What should be known when this process starts. Raises ConfigError when it must not start."""
    mask = masker(settings)
    notes = []
    for check in checks:
        for finding in _look(check, settings) if process in check.guards else ():
            finding = finding.masked(mask)
            if finding.level is Level.ERROR and not finding.away:
                raise ConfigError(finding.setting, finding.problem, finding.remedy)
            if finding.level is not Level.OK:
                notes.append(f"{finding.setting}: {finding.problem}. {finding.remedy}")
    return notes


def _begin(check: Check, settings: Settings) -> Future[list[Finding]]:
    """In a daemon thread: one that hangs must not keep the process."""
    answer: Future[list[Finding]] = Future()

    def work() -> None:
        answer.set_result(_look(check, settings))

    threading.Thread(target=work, name=f"check {check.name}", daemon=True).start()
    return answer


def _look(check: Check, settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(check.look(settings))
    except ConfigError as wrong:
        findings.append(error(check.name, wrong.problem, wrong.setting, wrong.remedy))
    except NcrError as failure:
        remedy = "It may pass by itself; else check the address and the server's own log"
        findings.append(error(check.name, str(failure), check.setting, remedy, away=True))
    except Exception as failure:  # noqa: BLE001 - whatever a library raises, the other checks are told
        text = f"{type(failure).__name__}: {failure}"
        findings.append(error(check.name, text, check.setting, "See env_sample for how it is written", away=True))
    return findings
