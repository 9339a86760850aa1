"""Files of jobs: what is read from JSON, NDJSON and CSV, and what is said of wrong lines."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncr_worker.cli.batchfile import read
from ncr_worker.errors import Rejected
from ncr_worker.pipelines.deliver.model import DeliverArgs

ANN = {"job_id": "4711", "username": "ann", "campaign": "spring", "row_id": None}
BOB = {"job_id": "4712", "username": "bob", "campaign": "Frühjahr, 2026", "row_id": 42}

LABELS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(lambda t: t.strip() == t)
JOBS = st.lists(
    st.builds(
        DeliverArgs,
        job_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        username=LABELS,
        campaign=LABELS,
        row_id=st.none() | st.integers(0, 2**63 - 1),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda job: job.job_id,
)


def jobs(content: str | bytes) -> list[dict[str, object]]:
    data = content if isinstance(content, bytes) else content.encode()
    return [job.model_dump() for job in read("orders", data)]


def refusal(content: str | bytes) -> str:
    with pytest.raises(Rejected) as refused:
        jobs(content)
    return str(refused.value)


def as_csv(many: list[DeliverArgs], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(DeliverArgs.model_fields), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(job.model_dump() for job in many)
    return text.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([ANN, BOB]),
        json.dumps([ANN, BOB], indent=2),
        f"  [ {json.dumps(ANN)}\n ,\n {json.dumps(BOB)} ] \n",
        f"{json.dumps(ANN)}\n\n{json.dumps(BOB)}\r\n",
        'job_id,username,campaign,row_id\n4711,ann,spring,\n4712,bob,"Frühjahr, 2026",42\n',
        "\ufeffjob_id;username;campaign;row_id\r\n4711;ann;spring;\r\n\r\n4712;bob;Frühjahr, 2026; 42\r\n",
        "row_id\tcampaign\tusername\tjob_id\n\tspring\tann\t4711\n42\tFrühjahr, 2026\tbob\t4712",
    ],
    ids=["json", "indented", "spaced", "ndjson", "csv", "excel", "tabs"],
)
def test_each_format_gives_the_same_jobs(content: str) -> None:
    assert jobs(content) == [ANN, BOB]


def test_the_row_id_may_be_left_out() -> None:
    assert jobs("job_id,username,campaign\n4711,ann,spring") == [ANN]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("job_id,username,campaign\n4711,ann,spring\n4712,,spring\n", "line 3, username: Field required"),
        ("job_id,username,campaign\n../x,ann,spring\n", "line 2, job_id: String should match"),
        ("job_id,username,campaign,row_id\n1,a,b,x\n", "line 2, row_id: "),
        ('job_id,username,campaign\n1,"a\nb",c\n', "line 2, username: "),
        ("job_id,username,campaign\n1,a,b,c\n", "line 2: 4 fields, the header has 3"),
        ('job_id,username,campaign\n1,"a,b\n', "line 2: not CSV: "),
        ("job,username\n1,a\n", "line 1: the header must be job_id,username,campaign,row_id"),
        ("job_id,username,campaign\n", "there is no job in it"),
        ("", "line 1: the header must be"),
        ("[]", "there is no job in it"),
        (f"[{json.dumps(ANN)},\n{json.dumps(ANN)}]", "line 2, job_id: 4711 stands on line 1 already"),
        (f"[{json.dumps(ANN)}\n{json.dumps(BOB)}]", "line 2: a comma or ] is missing"),
        (f"[{json.dumps(ANN)},\n]", "line 2: not JSON: Expecting value"),
        (f"[{json.dumps(ANN)}", "line 1: a comma or ] is missing"),
        (f"[{json.dumps(ANN)}] x", "line 1: something stands behind the closing ]"),
        ('[\n\n{"job_id": "1",\n"username" "a"}]', "line 4: not JSON: Expecting ':' delimiter"),
        ("[\n1]", "line 2: not an object with job_id, username, campaign"),
        (f"{json.dumps(ANN)}\n{json.dumps({**BOB, 'when': 'now'})}", "line 2, when: Extra inputs are not permitted"),
        (f"{json.dumps(ANN)}\n4712,bob,spring", "line 2: more than one JSON object; write one a line"),
        ('{"job_id":\n"1"}', "line 1: not JSON: "),
        ("[" * 100_000, "line 1: not JSON that makes sense"),
        (f"[{'1' * 10_000}]", "line 1: not JSON that makes sense"),
        (b"job_id,username,campaign\n1,a,\xff", "line 2: not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_field(content: str | bytes, said: str) -> None:
    text = refusal(content)
    assert text.startswith(f"orders: {said}")
    assert text.endswith("Nothing was stored")


def test_of_many_wrong_lines_some_are_named_and_the_rest_is_counted() -> None:
    text = refusal("job_id,username,campaign\n" + "x,,spring\n" * 8)
    assert all(f"line {line}, username" in text for line in range(2, 7))
    assert "line 7" not in text
    assert "and 3 more" in text


@given(JOBS, st.sampled_from(",;\t"))
def test_what_was_written_as_csv_is_read_again(many: list[DeliverArgs], delimiter: str) -> None:
    assert read("orders", as_csv(many, delimiter).encode()) == many


@given(JOBS, st.none() | st.integers(0, 4))
def test_what_was_written_as_json_is_read_again(many: list[DeliverArgs], indent: int | None) -> None:
    whole = json.dumps([job.model_dump() for job in many], indent=indent)
    assert read("orders", whole.encode()) == many
    assert read("orders", "\n".join(job.model_dump_json() for job in many).encode()) == many


@given(st.binary(max_size=200) | st.text("[]{},:;\"'\n 1a\\job_idusername", max_size=200).map(str.encode))
def test_any_content_is_read_or_refused_in_words(content: bytes) -> None:
    try:
        said: object = read("orders", content)
    except Rejected as refused:
        said = str(refused).endswith("Nothing was stored")
    assert said
