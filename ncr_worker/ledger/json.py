"""JSON columns that behave alike on every database: text, keys sorted, no size limit."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.types import TypeDecorator

from ncr_worker.sql import LongText


class Json(TypeDecorator[Any]):
    impl = LongText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)
