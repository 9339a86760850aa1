"""What Prometheus would read of a text."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def families(text: str) -> set[str]:
    """Names of all metrics, as a query has them: counters with their `_total`."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
    }


def figure(text: str, name: str, **labels: str) -> float:
    """The sum of all samples of this name that have these labels; 0 when there is none."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())
