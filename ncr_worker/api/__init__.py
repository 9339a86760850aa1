"""The HTTP interface. `uvicorn ncr_worker.api:app` finds `app` here."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Built at first use: importing a module must not read the environment.
    if name == "app":
        from ncr_worker import logs
        from ncr_worker.api.application import create_app
        from ncr_worker.settings import load_settings

        settings = load_settings()
        logs.configure(settings)
        globals()["app"] = create_app(settings)
        return globals()["app"]
    raise AttributeError(name)
