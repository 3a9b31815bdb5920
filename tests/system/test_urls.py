from __future__ import annotations

import pytest

from qdora_fast.system.urls import complete, file_name, lost_slash, scheme_of, without_credentials


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("https://u:pw@host/rows.jsonl", "https://host/rows.jsonl"),
        ("https://token@host/rows.jsonl", "https://host/rows.jsonl"),
        (
            "https://b.s3.amazonaws.com/r.jsonl?X-Amz-Algorithm=A&X-Amz-Credential=B%2F2&X-Amz-Signature=0f&versionId=7",
            "https://b.s3.amazonaws.com/r.jsonl?versionId=7",
        ),
        (
            "https://x.blob.core.windows.net/c/r.csv?sv=2024&st=1&se=2&sr=b&sp=r&sig=a%2Bb",
            "https://x.blob.core.windows.net/c/r.csv",
        ),
        ("https://cdn/r.csv?Expires=1&Signature=abc&Key-Pair-Id=K1", "https://cdn/r.csv"),
        ("https://host/get?file=a.jsonl&access_token=abc#part", "https://host/get?file=a.jsonl#part"),
    ],
)
def test_credentials_are_taken_out_and_remembered(given: str, public: str) -> None:
    assert without_credentials(given) == public
    assert complete(public) == given


@pytest.mark.parametrize(
    "given",
    [
        "https://host/rows.jsonl?download=1&v=2",
        "https://host/get?key=rows/a.jsonl",
        "https://host/r.csv?se=2&st=1",
        "s3://bucket/user@example/rows-*.jsonl",
        "abfss://container@account.dfs.core.windows.net/rows.parquet",
        "hf://datasets/org/name@main/rows.jsonl",
        "rows?.jsonl",
        "mail@example.jsonl",
    ],
)
def test_what_only_names_the_rows_stays(given: str) -> None:
    assert without_credentials(given) == given
    assert complete(given) == given


def test_a_scheme_and_a_lost_slash() -> None:
    assert scheme_of("S3://b/x") == "s3"
    assert scheme_of("C:\\rows.jsonl") is scheme_of("org/name") is scheme_of("https:/host/x") is None
    assert lost_slash("https:/host/x.jsonl") == "https://host/x.jsonl"
    assert lost_slash("https://host/x") is lost_slash("notes:/x") is None


def test_the_name_of_a_file() -> None:
    assert file_name("https://host/a/my%20rows.jsonl?versionId=3") == "my rows.jsonl"
    assert file_name("s3://bucket/rows?.jsonl") == "rows?.jsonl"
    assert file_name("https://host/rows/") == ""
