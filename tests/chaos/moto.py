"""`python -m tests.chaos.moto PORT`: moto's S3 server, without a line in the log for each request; it ends with its parent."""

from __future__ import annotations

import logging
import os
import sys

from pipeline.supervisor import outlive_not

if __name__ == "__main__":
    from moto.server import main

    outlive_not(os.getppid(), lambda: os._exit(1))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
