"""Asks for more memory than a process may ever have."""

from __future__ import annotations

from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage

EVERYTHING = 1 << 62


class ExhaustedArgs(Args):
    name: str

    @property
    def ref(self) -> str:
        return self.name


class Exhausted(Parcel):
    args: ExhaustedArgs


@stage()
def ask(run: Run, parcel: Exhausted) -> Exhausted:
    bytearray(EVERYTHING)
    return parcel


PIPELINE = Pipeline("exhausted", ExhaustedArgs, Exhausted, (ask,), memory=32 * MIB, attempts=3)
