"""DuckDB's extensions, as they were installed with this package: nothing is downloaded at run time. And what S3 asks of a reader.

Delta and Polars take the AWS_* variables as they are; DuckDB wants them as a secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import duckdb

from pipeline.errors import Invalid
from pipeline.stores.lake import first_line

S3 = ("s3://", "s3a://")


def extension_path(name: str = "delta") -> str:
    """The file of an extension. Invalid: it is not installed, or for another DuckDB."""
    spec = find_spec(f"duckdb_extension_{name}")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if path.exists():
            return str(path)
    package = f"duckdb-extension-{name}=={duckdb.__version__}"
    raise Invalid(f"the {name} extension of DuckDB {duckdb.__version__} is missing: pip install {package}")


def install_extensions() -> None:
    """Copy them to where every DuckDB client of this user and version finds them by itself (~/.duckdb)."""
    with duckdb.connect() as connection:
        for name in ("delta", "httpfs"):
            try:
                connection.execute(f"FORCE INSTALL {quoted(extension_path(name))}")
            except duckdb.Error as error:
                raise Invalid(f"the {name} extension cannot be installed: {first_line(error)}") from error


def load_extensions(connection: duckdb.DuckDBPyConnection, lake: str) -> None:
    """What a connection needs to read this lake."""
    if lake.startswith(S3):
        connection.execute(f"LOAD {quoted(extension_path('httpfs'))}")
        connection.execute(s3_secret(lake, os.environ))
    connection.execute(f"LOAD {quoted(extension_path())}")


def s3_secret(lake: str, environment: Mapping[str, str]) -> str:
    """The statement by which DuckDB opens the bucket of a lake as Delta does. Invalid: there is no key."""
    given = {name.upper(): value for name, value in environment.items() if name.upper().startswith("AWS_") and value}
    if "AWS_ACCESS_KEY_ID" not in given or "AWS_SECRET_ACCESS_KEY" not in given:
        raise Invalid(f"SQL over {lake} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) in the environment")
    parts = {
        "KEY_ID": given["AWS_ACCESS_KEY_ID"],
        "SECRET": given["AWS_SECRET_ACCESS_KEY"],
        "SESSION_TOKEN": given.get("AWS_SESSION_TOKEN"),
        "REGION": given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or "us-east-1",
        "SCOPE": "s3://" + urlsplit(lake).netloc,
    }
    endpoint = next((given[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if name in given), None)
    if endpoint:
        scheme, _, place = endpoint.rpartition("://")
        hosted = given.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("true", "1")
        parts |= {"ENDPOINT": place.rstrip("/"), "URL_STYLE": "vhost" if hosted else "path", "USE_SSL": str(scheme != "http").lower()}
    told = ", ".join(f"{name} {quoted(value)}" for name, value in parts.items() if value)
    return f"CREATE OR REPLACE TEMPORARY SECRET lake (TYPE s3, {told})"


def quoted(text: str) -> str:
    """Text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"
