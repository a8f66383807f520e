"""Uvicorn's server with our own listening: a bound on TLS handshakes, which come before any of our code, and on descriptors."""

from __future__ import annotations

import asyncio
import functools
import logging
import resource
import socket

import uvicorn

from api.tls import Tls

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS_MAX = 10.0
SHUTDOWN_SECONDS_MAX = 2.0  # for the client's last word, once we have hung up
RENEW_TICKS = 50  # of a tenth of a second: how often the certificate's files are looked at
_DESCRIPTORS_OF_OURS = 128  # Redis, logs, listeners, and connections that have not shaken hands yet


class Server(uvicorn.Server):
    """Serves the sockets it is given, with TLS or without."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None, handshake_seconds: float) -> None:
        super().__init__(config)
        self._tls = tls
        waits = {"ssl_handshake_timeout": min(handshake_seconds, HANDSHAKE_SECONDS_MAX), "ssl_shutdown_timeout": SHUTDOWN_SECONDS_MAX}
        self._secure = {} if tls is None else {"ssl": tls.context, **waits}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        protocol = functools.partial(
            self.config.http_protocol_class, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        for listener in sockets or []:
            server = await asyncio.get_running_loop().create_server(protocol, sock=listener, backlog=self.config.backlog, **self._secure)
            self.servers.append(server)

    async def on_tick(self, counter: int) -> bool:
        if self._tls is not None and counter % RENEW_TICKS == 0:
            self._tls.renew()
        return await super().on_tick(counter)


def room_for(connections: int) -> int:
    """How many connections this process can hold of those that are wanted: each is a descriptor, and the system has a say."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _DESCRIPTORS_OF_OURS
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        found = max(8, soft - _DESCRIPTORS_OF_OURS)
        _log.warning("only %d connections, not PIPELINE_CONNECTIONS_MAX=%d: raise `ulimit -n` to %d", found, connections, wanted)
        return found
    return connections
