"""A process that publishes a delivery and stops for good at a point between two requests: to be killed there.

`python publisher.py PARCEL JOB_ID CHANGES`: after so many changes on the server it prints a line and waits.
Settings come from the environment.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deliveries import STAGES, LooseRun, running_job

from ncr_worker.pipelines.deliver.model import Delivery
from ncr_worker.settings import Settings
from ncr_worker.stores.sftp import SftpTarget


def stop_after(changes: int) -> None:
    """Of the requests that publish."""
    made = 0

    def stop() -> None:
        if made == changes:
            print("here", flush=True)
            signal.pause()

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def change(self: SftpTarget, *names: str) -> None:
            nonlocal made
            stop()
            real(self, *names)
            made += 1
            stop()

        return change

    target: Any = SftpTarget
    target.rename, target.link = counted(SftpTarget.rename), counted(SftpTarget.link)


def main() -> None:
    parcel = Delivery.model_validate_json(Path(sys.argv[1]).read_text())
    settings = Settings(_env_file=None)
    stop_after(int(sys.argv[3]))
    STAGES["publish"](LooseRun(running_job(parcel.args, job_id=sys.argv[2]), settings, settings.work_folder), parcel)


if __name__ == "__main__":
    main()
