"""A fleet from a seed: sites hold devices with roles, devices hold interfaces, links join two of them.

Per site: leaves hang on spines, spines and edges on cores, and the first cores of the sites form a ring.
Interfaces without a link face hosts. Sizes up to some 100,000 devices are built with arrays, not loops.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from simulator.hashing import mix, unit
from simulator.metrics import IF_MIB, IF_MIB_32, METRICS, OPENCONFIG

CITIES = ["ams", "fra", "lon", "par", "waw", "mad", "mil", "zrh", "vie", "prg", "osl", "hel"]
ROLES = ["core", "edge", "spine", "leaf"]
_SPEED_BPS = {OPENCONFIG: 100_000_000_000, IF_MIB: 10_000_000_000, IF_MIB_32: 100_000_000}
_PORT = {OPENCONFIG: "Ethernet{}/1", IF_MIB: "TenGigE0/0/{}", IF_MIB_32: "FastEthernet0/{}"}


@dataclass(frozen=True)
class Fleet:
    """Frames whose row numbers are the identifiers used everywhere else.

    devices     device, site, role, dialect
    interfaces  at (row of devices), interface, speed_bps, peer (row of interfaces at the link's other end, or null)
    series      at, port (row of interfaces, or null), device, interface, metric, signal, kind, tags; ordered by device
    """

    seed: int
    devices: pl.DataFrame
    interfaces: pl.DataFrame
    series: pl.DataFrame

    @cached_property
    def links(self) -> pl.DataFrame:
        """Each link once: device, interface, peer_device, peer_interface."""
        row = pl.int_range(pl.len())
        ends = self.interfaces.select("interface", "peer", device=self.devices["device"].gather(self.interfaces["at"]), row=row)
        near = ends.filter(pl.col("row") < pl.col("peer"))
        far = ends[near["peer"]].select(peer_device="device", peer_interface="interface")
        return pl.concat([near.select("device", "interface"), far], how="horizontal")


def build_fleet(seed: int, sites: int, devices: int, interfaces: int) -> Fleet:
    """Lay out `devices` devices over `sites` sites, each with `interfaces` interfaces. Same arguments, same fleet."""
    boxes = _devices(seed, sites, devices)
    ports = _interfaces(boxes, interfaces)
    return Fleet(seed, boxes, ports, _series(boxes, ports))


def series_per_device(interfaces: int) -> int:
    """How many series an OpenConfig device of this size has, for planning a fleet to a rate."""
    mine = METRICS.filter(pl.col("dialect") == OPENCONFIG)
    return interfaces * mine.filter(pl.col("level") == "interface").height + mine.filter(pl.col("level") == "device").height


def _devices(seed: int, sites: int, devices: int) -> pl.DataFrame:
    index = np.arange(devices)
    site = index % sites
    rank = index // sites  # within the site
    size = np.bincount(site, minlength=sites)[site]
    core = np.maximum(size // 12, size >= 6)
    edge = size // 8
    spine = np.maximum(size // 5, size >= 2)
    role = np.select([rank < core, rank < core + edge, rank < core + edge + spine], [0, 1, 2], 3)
    number = rank - np.select([role == 0, role == 1, role == 2], [0, core, core + edge], core + edge + spine)
    modern = unit(seed, 1, index) < 0.75
    names = [CITIES[s] if s < len(CITIES) else f"site{s}" for s in range(sites)]
    columns = {"site": pl.Series(names).gather(site), "role": pl.Series(ROLES).gather(role), "number": number, "modern": modern}
    frame = pl.DataFrame(columns)
    dialect = pl.when(pl.col("role") == "edge").then(pl.lit(IF_MIB_32)).when("modern").then(pl.lit(OPENCONFIG)).otherwise(pl.lit(IF_MIB))
    name = pl.format("{}-{}-{}", "site", "role", (pl.col("number") + 1).cast(pl.String).str.zfill(2))
    return frame.select(name.alias("device"), "site", "role", dialect.alias("dialect"))


def _interfaces(boxes: pl.DataFrame, interfaces: int) -> pl.DataFrame:
    at = np.repeat(np.arange(boxes.height), interfaces)
    number = np.tile(np.arange(interfaces), boxes.height)
    pattern = pl.when(pl.col("dialect") == OPENCONFIG).then(pl.lit(_PORT[OPENCONFIG]))
    pattern = pattern.when(pl.col("dialect") == IF_MIB).then(pl.lit(_PORT[IF_MIB])).otherwise(pl.lit(_PORT[IF_MIB_32]))
    ports = boxes.select("dialect")[at].select(
        pl.Series("at", at),
        pattern.str.replace("{}", pl.Series("n", number).cast(pl.String), literal=True).alias("interface"),
        pl.col("dialect").replace_strict(_SPEED_BPS, return_dtype=pl.Int64).alias("speed_bps"),
    )
    a, b = _cables(boxes, interfaces)
    peer = np.full(ports.height, -1)
    peer[a], peer[b] = b, a
    speed = ports["speed_bps"].to_numpy().copy()
    speed[a] = speed[b] = np.minimum(speed[a], speed[b])
    return ports.with_columns(speed_bps=speed, peer=pl.Series(peer).replace(-1, None))


def _cables(boxes: pl.DataFrame, interfaces: int) -> tuple[np.ndarray, np.ndarray]:
    """The two interface rows of each link. A link for which an end has no port left is not laid."""
    index = np.arange(boxes.height)
    role, site = boxes["role"].to_numpy(), boxes["site"].to_numpy()
    of_role = {name: index[role == name] for name in ROLES}
    members = {(s, name): rows[site[rows] == s] for name, rows in of_role.items() for s in np.unique(site)}
    firsts = np.array([members[s, "core"][0] for s in boxes["site"].unique(maintain_order=True) if len(members[s, "core"])], dtype=int)
    ring = np.stack([firsts, np.roll(firsts, -1)])[:, : len(firsts) if len(firsts) > 2 else len(firsts) - 1]  # two need one cable, not two
    pairs = [ring]
    for s in np.unique(site):
        for lower, upper, most in (("spine", "core", 2), ("edge", "core", 2), ("leaf", "spine", max(1, interfaces // 2))):
            low, up = members[s, lower], members[s, upper]
            uplinks = min(len(up), most)
            for k in range(uplinks):
                pairs.append(np.stack([low, up[(np.arange(len(low)) + k) % len(up)]]))
    ends = np.concatenate(pairs, axis=1)
    flat = pl.Series("at", ends.T.ravel())  # a0 b0 a1 b1 ...: ports are taken in the order of the cables
    port = flat.to_frame().select(pl.int_range(pl.len()).over("at").alias("port"))["port"].to_numpy().reshape(-1, 2).T
    laid = (port < interfaces).all(axis=0)
    rows = ends[:, laid] * interfaces + port[:, laid]
    return rows[0], rows[1]


def _series(boxes: pl.DataFrame, ports: pl.DataFrame) -> pl.DataFrame:
    named = boxes.with_row_index("at").with_columns(pl.col("at").cast(pl.Int64))
    facts = METRICS.with_row_index("nth")
    own = named.join(facts.filter(pl.col("level") == "device"), on="dialect").with_columns(
        port=pl.lit(None, pl.Int64), interface=pl.lit("")
    )
    theirs = (
        ports.select("at", "interface").with_row_index("port").with_columns(pl.col("port").cast(pl.Int64))
        .join(named, on="at").join(facts.filter(pl.col("level") == "interface"), on="dialect")
    )
    columns = ["at", "port", "device", "interface", "metric", "signal", "kind", "site", "role", "nth"]
    return (
        pl.concat([own.select(columns), theirs.select(columns)])
        .sort("at", "port", "nth", nulls_last=False)
        .select("at", "port", "device", "interface", "metric", "signal", "kind", tags=pl.struct("site", "role"))
    )


def series_keys(fleet: Fleet) -> np.ndarray:
    """One uint64 per series that depends on the seed and the row only: the key of its noise."""
    return mix(fleet.seed, 2, np.arange(fleet.series.height))
