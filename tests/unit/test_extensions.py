"""How DuckDB is told of a bucket: from the variables that Delta reads."""

from __future__ import annotations

import pytest

from pipeline.errors import Invalid
from pipeline.stores.extensions import s3_secret

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "it's"}


def test_aws_needs_keys_and_a_region():
    told = s3_secret("s3://bucket/lake", {**KEYS, "AWS_REGION": "eu-central-1", "AWS_SESSION_TOKEN": "t"})
    parts = "KEY_ID 'id', SECRET 'it''s', SESSION_TOKEN 't', REGION 'eu-central-1', SCOPE 's3://bucket'"
    assert told == f"CREATE OR REPLACE TEMPORARY SECRET lake (TYPE s3, {parts})"


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ({"AWS_ENDPOINT_URL": "http://minio:9000"}, "ENDPOINT 'minio:9000', URL_STYLE 'path', USE_SSL 'false'"),
        ({"AWS_ENDPOINT_URL": "https://a.r2.example/"}, "ENDPOINT 'a.r2.example', URL_STYLE 'path', USE_SSL 'true'"),
        (
            {"AWS_ENDPOINT": "https://s3.example", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
            "ENDPOINT 's3.example', URL_STYLE 'vhost', USE_SSL 'true'",
        ),
    ],
)
def test_other_stores_have_an_endpoint(extra, parts):
    assert s3_secret("s3://bucket/lake", {**KEYS, **extra}).endswith(f"{parts})")


def test_without_a_key_it_says_which():
    with pytest.raises(Invalid, match="needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        s3_secret("s3://bucket/lake", {"AWS_ACCESS_KEY_ID": "id"})
