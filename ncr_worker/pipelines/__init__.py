"""Every kind of job. A new one is one module here that exposes PIPELINE (see EXTENDING.md)."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from ncr_worker.errors import ConfigError
from ncr_worker.pipeline import Pipeline


def load_pipelines(extra: Sequence[str] = ()) -> dict[str, Pipeline[Any]]:
    """kind -> pipeline: those in this package, and those of `extra` modules. Raises ConfigError."""
    found: dict[str, Pipeline[Any]] = {}
    for name in [*_modules(), *extra]:
        try:
            pipeline = import_module(name).PIPELINE
        except (ImportError, AttributeError) as error:
            raise ConfigError("EXTRA_PIPELINES", f"{name}: {error}", "Name modules that expose PIPELINE") from error
        if pipeline.kind in found:
            raise ConfigError("EXTRA_PIPELINES", f"{name}: kind {pipeline.kind!r} exists already", "Rename it")
        found[pipeline.kind] = pipeline
    return found


def _modules() -> Iterator[str]:
    return (f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
