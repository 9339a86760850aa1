"""The command `ncr` for tests: in this process, in one of its own, or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ncr_worker.cli import main
from ncr_worker.settings import Settings

PATIENCE = 60.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Answer:
    """`error`: what stands on stderr."""

    code: int
    text: str
    error: str

    @property
    def document(self) -> Any:
        return json.loads(self.text)

    @property
    def documents(self) -> list[Any]:
        """Of NDJSON."""
        return [json.loads(line) for line in self.text.splitlines()]


class Stdin(BytesIO):
    name = "<stdin>"


def environment(settings: Settings) -> dict[str, str]:
    """What makes these settings those of a process."""

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(value)
        return str(value.get_secret_value() if isinstance(value, SecretStr) else value)

    return {name.upper(): text(value) for name, value in settings}


class Ncr:
    """Runs commands with these settings, in an empty folder."""

    def __init__(
        self, settings: Settings, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.settings = settings
        self._patch = patch
        self._capture = capture
        patch.chdir(folder)

    def __call__(self, *args: str, stdin: bytes = b"", **changes: Any) -> Answer:
        """In this process. `changes`: other settings."""
        with self._patch.context() as patch:
            for name, value in environment(self.settings.model_copy(update=changes)).items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", TextIOWrapper(Stdin(stdin)))
            self._capture.readouterr()
            with pytest.raises(SystemExit) as ended:
                main(args)
        said = self._capture.readouterr()
        return Answer(int(ended.value.code or 0), said.out, said.err)

    @contextmanager
    def process(self, *args: str) -> Iterator[Process]:
        """A process of its own without a terminal."""
        with _started(self.settings, args, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as popen:
            yield Process(popen)

    @contextmanager
    def terminal(self, *args: str) -> Iterator[Terminal]:
        """A process of its own on a terminal."""
        ours, its = pty.openpty()
        try:
            streams = {"stdin": its, "stdout": its, "stderr": its}
            with _started(self.settings, args, TERM="xterm", COLUMNS="120", LINES="30", **streams) as popen:
                yield Terminal(popen, ours)
        finally:
            os.close(its)
            os.close(ours)


@contextmanager
def _started(settings: Settings, args: tuple[str, ...], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    more = {name: options.pop(name) for name in list(options) if name.isupper()}
    env = os.environ | environment(settings) | {"PYTHONUNBUFFERED": "1"} | more
    command = [sys.executable, "-m", "ncr_worker", *args]
    popen = subprocess.Popen(command, env=env, start_new_session=True, **options)
    try:
        yield popen
    finally:
        with suppress(ProcessLookupError):
            popen.kill()
        popen.communicate()


class Process:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def line(self) -> str:
        """The next one of stdout."""
        assert self._popen.stdout
        return self._popen.stdout.readline().decode()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._popen.send_signal(signal.SIGINT)

    def end(self) -> Answer:
        """Wait for it; its text is what was not read yet."""
        out, err = self._popen.communicate(timeout=PATIENCE)
        return Answer(self._popen.returncode, out.decode(), err.decode())


class Terminal:
    """What a person would have seen, without colours and moves."""

    def __init__(self, popen: subprocess.Popen[bytes], master: int) -> None:
        self._popen = popen
        self._master = master
        self._shown = b""

    @property
    def seen(self) -> str:
        return _ESCAPES.sub("", self._shown.decode(errors="replace"))

    def until(self, text: str) -> str:
        """Wait until it shows `text`; all that it has shown."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} was not shown: {self.seen}"
            if select.select([self._master], [], [], 1.0)[0]:
                self._shown += os.read(self._master, 65536)
        return self.seen

    def interrupt(self) -> None:
        self._popen.send_signal(signal.SIGINT)

    def end(self) -> int:
        return self._popen.wait(PATIENCE)
