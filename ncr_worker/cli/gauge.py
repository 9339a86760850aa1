"""How memory looks to a person: a bar for each host, its jobs, why others wait, and why they need so much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median_low
from textwrap import fill

from rich import box
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ncr_worker.cli.plot import Plot
from ncr_worker.cli.show import clean, duration
from ncr_worker.views.explain import JobExplanation, MemoryFacts, Place
from ncr_worker.views.figures import AdmissionExplanation, HostMemory, JobMemory, MemoryStats
from ncr_worker.views.prediction import MEASURES, NeedExplanation

BAR = 60
"""Characters of a bar, at most."""
OTHERS, USED, RESERVED = ("▓", "magenta"), ("█", "green"), ("▒", "cyan")
LEGEND = "▓ other programs  █ used by jobs  ▒ reserved for them  · free  │ end of what may be used"


def memory_view(stats: MemoryStats, width: int) -> Group:
    """For a terminal of `width` columns."""
    head = Text("accepting jobs: " if stats.accepting_jobs else "not accepting jobs: ") + Text(clean(stats.reason))
    parts: list[Text | Table] = [head]
    for host in stats.hosts:
        parts += [Text(), _title(host), _bar(host, min(width, BAR)), _sizes(host)]
        if host.jobs:
            parts.append(_jobs(host.jobs))
    if stats.hosts:
        waiting = stats.hosts[0].waiting
        if waiting.jobs:
            parts += [Text(), Text(f"{waiting.jobs:,} jobs wait for memory, {decimal(waiting.bytes)} together")]
        parts += [Text(), Text(LEGEND, "dim")]
    return Group(*parts)


def admission_lines(found: AdmissionExplanation) -> Iterator[str]:
    yield f"{found.kind}   {'is taken in' if found.accepting_jobs else 'is refused'}: {clean(found.reason)}"
    if found.retry_after_seconds:
        yield f"again in about {duration(found.retry_after_seconds)}"
    yield f"need      {decimal(found.need_bytes)}"
    yield f"backlog   {found.waiting_jobs:,} of {found.max_waiting_jobs:,} jobs, about {duration(found.drain_seconds)}"
    if found.run_seconds is not None:
        yield f"a run     takes about {duration(found.run_seconds)}"
    yield from _places(found.hosts)


def explanation_lines(found: JobExplanation) -> Iterator[str]:
    yield f"job       {clean(found.job_id)}"
    yield f"task      {found.task_id}"
    yield f"state     {found.state}"
    for number, reason in enumerate(found.reasons):
        yield f"{'why' if number == 0 else '':9} {clean(reason.text)} ({reason.code})"
    if found.waits:
        known = found.starts_in_seconds
        yield f"starts    {'nobody knows when' if known is None else f'in about {duration(known)}'}"
    yield from _memory(found.memory)
    yield from _places(found.hosts)


def prediction_view(found: NeedExplanation, width: int, job: MemoryFacts | None = None) -> Iterator[str | Text]:
    """What was learned of a kind, and why a job of it gets so much; with a plot where there is a curve."""
    for line in _prediction(found):
        yield fill(line, width, subsequent_indent=" " * 10, break_on_hyphens=False)
    if found.curve:
        reserved, used = (job.reserved_bytes or job.need_bytes, job.peak_bytes) if job else (None, None)
        yield ""
        yield from Plot(found, width, reserved, used).lines()


def _prediction(found: NeedExplanation) -> Iterator[str]:
    known, measure = found.size_bytes, MEASURES[found.measure or "input_bytes"]
    of = f" for {decimal(known)} of {measure}" if known is not None else ""
    yield f"predicted {decimal(found.need_bytes)}{of}, by what is known now"
    yield f"because   {found.text}"
    if not found.points:
        return
    yield f"rests on  {_rests_on(found)}"
    for each in found.sizes:
        yield f"{each.name:9} {measure} so far, {decimal(each.size_bytes)}: gets {decimal(each.need_bytes)}"
    if not found.sizes:
        peaks = sorted(one.peak_bytes for one in found.points)
        yield f"peaks     {decimal(peaks[0])} to {decimal(peaks[-1])}, half of them up to {decimal(median_low(peaks))}"
    if found.stages:
        yield f"by step   {', '.join(f'{each.stage} {decimal(each.need_bytes)}' for each in found.stages)}"


def _rests_on(found: NeedExplanation) -> str:
    total, killed = len(found.points), sum(one.killed for one in found.points)
    text = f"{total} job{'s' if total > 1 else ''} of version{'' if found.own else 's before'} {found.version}"
    if 0 < found.own < total:
        text += f" ({found.own}) and of those before ({total - found.own})"
    return text + (f"; {killed} ran out of memory" if killed else "")


def _memory(facts: MemoryFacts) -> Iterator[str]:
    sizes = {"predicted": facts.predicted_bytes, "needs": facts.need_bytes, "reserved": facts.reserved_bytes}
    sizes["peak"] = facts.peak_bytes
    yield "memory    " + ", ".join(f"{name} {decimal(size)}" for name, size in sizes.items() if size is not None)
    if facts.usual_peak_bytes is not None and facts.largest_peak_bytes is not None:
        usual, largest = decimal(facts.usual_peak_bytes), decimal(facts.largest_peak_bytes)
        yield f"others    of its kind used {usual}, at most {largest} (the last {facts.runs} runs)"


def _places(places: Sequence[Place]) -> Iterator[str]:
    for place in places:
        free = f"{decimal(place.free_bytes)} of {decimal(place.budget_bytes)} and {place.free_slots} slots free"
        when = f" in about {duration(place.fits_in_seconds)}" if place.must_end and place.fits_in_seconds else ""
        yield f"host      {clean(place.host)}: fits {place.fits}{when}; {free}"
        for one in place.must_end:
            end = "nobody knows when" if one.ends_in_seconds is None else f"in about {duration(one.ends_in_seconds)}"
            step = f", step {one.stage}" if one.stage else ""
            yield f"          has to end: {one.kind} {clean(one.job_id)}{step}, {decimal(one.bytes)}, {end}"


def _title(host: HostMemory) -> Text:
    facts = [f"{host.running_jobs} of {host.slots} slots taken", f"limit {decimal(host.limit_bytes)}"]
    facts[-1] += f" ({host.limit_source})"
    if host.pressure_percent:
        facts.append(f"pressure {host.pressure_percent:g} %")
    if host.swap_bytes:
        facts.append(f"swap {decimal(host.swap_bytes)}")
    return Text(clean(host.host), "bold") + Text(f"  {host.state}  " + "  ".join(facts), "not bold")


def _bar(host: HostMemory, width: int) -> Text:
    """The whole is the limit."""
    reserved = max(host.reserved_bytes - host.observed_bytes, 0)
    free = max(host.budget_bytes - max(host.reserved_bytes, host.observed_bytes), 0)
    bar, filled, total = Text(), 0, 0
    for size, (char, style) in ((host.used_bytes, OTHERS), (host.observed_bytes, USED), (reserved, RESERVED)):
        total += size
        upto = min(round(width * total / host.limit_bytes), width)
        bar.append(char * (upto - filled), style)
        filled = max(upto, filled)
    end = min(max(round(width * (total + free) / host.limit_bytes), filled), width)
    return bar + Text("·" * (end - filled), "dim") + Text("│")


def _sizes(host: HostMemory) -> Text:
    sizes = {"others": host.used_bytes, "used": host.observed_bytes, "reserved": host.reserved_bytes}
    texts = [f"{name} {decimal(size)}" for name, size in sizes.items()]
    return Text(f"{', '.join(texts)} of {decimal(host.budget_bytes)} for jobs")


def _jobs(jobs: Sequence[JobMemory]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("job_id", "kind", "step"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("reserved", "used", "peak", "predicted"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        sizes = (job.reserved_bytes, job.observed_bytes, job.peak_bytes, job.predicted_bytes)
        shown = ["" if size is None else decimal(size) for size in sizes]
        table.add_row(Text(clean(job.job_id)), job.kind, job.stage or "", *shown)
    return table
