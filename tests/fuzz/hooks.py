"""What schemathesis has to be told: how a body of lines, or of bytes, is made from what the schema allows."""

from __future__ import annotations

import schemathesis


@schemathesis.serializer("application/x-ndjson", "application/vnd.apache.arrow.stream")
def as_it_is(context: schemathesis.SerializationContext, value: object) -> bytes:
    """The text or the bytes themselves."""
    return value if isinstance(value, bytes) else str(value).encode()
