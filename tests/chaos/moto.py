"""`python -m tests.chaos.moto PORT`: moto's S3 server, without a line in the log for each request; it ends with its parent.

moto checks `If-None-Match` and writes in two steps; here one conditional PUT passes at a time, as S3 itself would have it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable

from pipeline.stops import outlive_not


class OneAtATime:
    """Around a WSGI application."""

    def __init__(self, application: Callable) -> None:
        self._application = application
        self._conditional = threading.Lock()

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        with self._conditional if "HTTP_IF_NONE_MATCH" in environ else contextlib.nullcontext():
            return self._application(environ, start_response)


if __name__ == "__main__":
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    outlive_not(os.getppid(), lambda: os._exit(1))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple("127.0.0.1", int(sys.argv[1]), OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True)
