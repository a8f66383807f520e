"""A Redis Cluster on loopback: three primaries and a replica each, of the server binary that the harness has. Ended by pid, always."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

import redis

from pipeline.stores.embedded import EmbeddedRedis
from tests.harness import eventually, free_port

PRIMARIES = 3
SLOTS = 16384
NODE_TIMEOUT_MS = 2000
BUS = 10_000  # what a node's second port is beyond its first


class ServerCluster:
    """Use as a context manager."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self._folder = folder
        self._password = password
        self.ports = [free_port(BUS) for _ in range(2 * PRIMARIES)]
        self._processes: dict[int, subprocess.Popen] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports[:PRIMARIES])
        secret = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis+cluster://{secret}{hosts}"

    def node(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, password=self._password or None, socket_timeout=5, decode_responses=True)

    def __enter__(self) -> ServerCluster:
        try:
            for port in self.ports:
                self._start(port)
            for port in self.ports:
                eventually(lambda port=port: self._answers(port), 20, "a node answers")
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _start(self, port: int) -> None:
        home = self._folder / f"node-{port}"
        home.mkdir(parents=True, exist_ok=True)
        secret = ["--requirepass", self._password, "--masterauth", self._password] if self._password else []
        with (home / "log").open("ab") as log:
            self._processes[port] = subprocess.Popen(
                [EmbeddedRedis.binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--cluster-enabled", "yes",
                 "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-require-full-coverage", "no", "--appendonly", "yes",
                 "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0", *secret],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def _answers(self, port: int) -> bool:
        if self._processes[port].poll() is not None:
            said = (self._folder / f"node-{port}" / "log").read_text(errors="replace")[-500:]
            raise AssertionError(f"{EmbeddedRedis.binary()} cannot be a node of a cluster: {said}")
        with contextlib.suppress(redis.RedisError):
            return self.node(port).ping()
        return False

    def _join(self) -> None:
        primaries, replicas = self.ports[:PRIMARIES], self.ports[PRIMARIES:]
        for number, port in enumerate(self.ports):
            self.node(port).execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                self.node(port).execute_command("CLUSTER", "MEET", "127.0.0.1", primaries[0])
        for number, port in enumerate(primaries):
            self.node(port).execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS * number // PRIMARIES, SLOTS * (number + 1) // PRIMARIES))
        for primary, replica in zip(primaries, replicas, strict=True):
            name = self.node(primary).execute_command("CLUSTER", "MYID")
            eventually(lambda replica=replica, name=name: self._follows(replica, name), 20, "a replica knows its primary")
        eventually(self._whole, 30, "the cluster is whole")

    def _follows(self, replica: int, name: str) -> bool:
        with contextlib.suppress(redis.ResponseError):  # it has not heard of that node yet
            self.node(replica).execute_command("CLUSTER", "REPLICATE", name)
            return True
        return False

    def _whole(self) -> bool:
        states = [self.node(port).execute_command("CLUSTER", "INFO") for port in self.ports]
        links = [self.node(port).info("replication").get("master_link_status") for port in self.ports]
        places = [nodes for port in self.ports for _, _, *nodes in self.node(port).execute_command("CLUSTER", "SLOTS")]
        agreed = all("cluster_state:ok" in state for state in states) and all(len(nodes) == 2 for nodes in places)
        return agreed and len(places) == PRIMARIES * len(self.ports) and links.count("up") == PRIMARIES

    def nodes_of(self, key: str) -> list[int]:
        """The ports of the primary that holds a key, and of its replicas, as a node that lives has it."""
        alive = self.node(next(port for port, process in self._processes.items() if process.poll() is None))
        slot = alive.execute_command("CLUSTER", "KEYSLOT", key)
        for first, last, *nodes in alive.execute_command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return [int(node[1]) for node in nodes]
        raise AssertionError(f"nobody has slot {slot}")

    def kill(self, port: int) -> None:
        """kill -9."""
        self._processes[port].kill()
        self._processes[port].wait()

    def pause(self, port: int) -> None:
        """It stands still; for longer than NODE_TIMEOUT_MS, and the others take it for dead."""
        self._processes[port].send_signal(signal.SIGSTOP)

    def go_on(self, port: int) -> None:
        self._processes[port].send_signal(signal.SIGCONT)

    def detach(self, replica: int) -> None:
        """A replica loses its primary for the moment: what is written from now on, it does not get. (A process that only stands
        still gets all of it from the kernel later, also of a primary that was killed.) It needs a cluster with a password."""
        node = self.node(replica)
        node.config_set("masterauth", "wrong")
        node.execute_command("CLIENT", "KILL", "TYPE", "master")
        eventually(lambda: node.info("replication")["master_link_status"] == "down", 10, "the replica is alone")

    def restart(self, port: int) -> None:
        """A node that was killed comes back, as a replica of whoever took over."""
        for other in self.ports:
            if self._processes[other].poll() is None:
                self.node(other).config_set("masterauth", self._password)
        self._start(port)
        eventually(lambda: self._answers(port), 20, "the node answers again")
