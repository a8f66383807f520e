"""The sender keeps its word: order per lane, one key per body, waits as asked, every event counted once."""

import asyncio
import json
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from simulator.client import Sender, token_of, trusted, wait_for_server
from simulator.errors import UserError
from simulator.wire import CONTENT_TYPES, bodies
from tests.certificates import certificate

AT = pl.lit(1_700_000_000_000).cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")


@dataclass
class Request:
    """One POST as it came, with its events decoded."""

    key: str
    token: str | None
    form: str
    events: list[dict]
    at: float = field(default_factory=time.monotonic)


Answer = tuple[int, dict[str, str], dict]


class Api:
    """A small real server. `behave(request, number)` answers, None drops the connection; by default all is taken."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.behave: Callable[[Request, int], Answer | None] = lambda request, number: taken(len(request.events))
        api, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.reply(200, {}, {})

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                form = self.headers["Content-Type"]
                request = Request(self.headers["Idempotency-Key"], self.headers["Authorization"], form, decode(form, content))
                with lock:
                    api.requests.append(request)
                    number = len(api.requests)
                answer = api.behave(request, number)
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.reply(*answer)

            def reply(self, status: int, headers: dict[str, str], said: dict) -> None:
                content = json.dumps(said).encode()
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content)), "Content-Type": "application/json"}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def events(self) -> list[dict]:
        return [event for request in self.requests for event in request.events]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def decode(form: str, content: bytes) -> list[dict]:
    """The events of a body; times of Arrow bodies as epoch milliseconds, like those of the other forms."""
    if form == CONTENT_TYPES["arrow"]:
        return pl.from_arrow(pa.ipc.open_stream(content).read_all()).with_columns(pl.col("timestamp").dt.epoch("ms")).to_dicts()
    return json.loads(content) if form == CONTENT_TYPES["json"] else [json.loads(line) for line in content.splitlines()]


def taken(accepted: int, rejected: int = 0, **more: object) -> Answer:
    return 202, {}, {"accepted": accepted, "rejected": rejected, "errors": [], **more}


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.close()


def events(number: int, device: str = "d") -> pl.DataFrame:
    return pl.DataFrame(
        {"device": [device] * number, "interface": "", "metric": "m", "value": [float(n) for n in range(number)], "lane": 0}
    ).with_columns(timestamp=AT)


def send(api: Api, frame: pl.DataFrame, body_events: int = 10, form: str = "json", **options) -> Sender:
    async def go() -> Sender:
        async with Sender(api.url, **options) as sender:
            await sender.send_events(frame, form, body_events)
        return sender

    return asyncio.run(go())


@pytest.mark.parametrize("form", ["json", "ndjson", "arrow"])
def test_every_form_carries_every_event(api, form):
    """Bodies of the asked size, in order, each with its own key; the answer's numbers are the books."""
    counts = send(api, events(25), form=form).counts
    assert [len(request.events) for request in api.requests] == [10, 10, 5]
    assert [event["value"] for event in api.events] == list(range(25))
    assert len({request.key for request in api.requests}) == 3
    assert counts.summary() == dict.fromkeys(counts.summary(), 0) | {"sent": 25, "accepted": 25, "bodies": 3}


def test_retry_after_is_waited_out(api):
    """429 and 503 with Retry-After: the same body with the same key comes again, not earlier, and counts once."""
    api.behave = lambda request, number: {1: (429, {"Retry-After": "1"}, {}), 2: (503, {"Retry-After": "0"}, {})}.get(number) or taken(10)
    counts = send(api, events(10)).counts
    first, second, third = api.requests
    assert first.key == second.key == third.key
    assert first.events == second.events == third.events
    assert 1.0 <= second.at - first.at < 1.6
    assert (counts.sent, counts.retries, counts.bodies) == (10, 2, 1)


def test_a_lost_answer_is_asked_for_again(api):
    """A dropped connection is retried under the same key; whether the server had it is the key's business."""
    api.behave = lambda request, number: None if number <= 2 else taken(10)
    counts = send(api, events(10)).counts
    assert len({request.key for request in api.requests}) == 1
    assert (counts.sent, counts.retries) == (10, 2)


def test_only_what_was_not_admitted_is_sent_again(api):
    """The rest of a body is a new body with a new key, still ahead of the lane's next one."""

    def behave(request: Request, number: int) -> Answer:
        partly = {"accepted": 7, "rejected": 1, "not_admitted": [3, 9]}
        return (429, {"Retry-After": "0"}, partly) if number == 1 else taken(len(request.events))

    api.behave = behave
    answered = []
    counts = send(api, events(20), on_answered=lambda rows: answered.extend(rows["value"].to_list())).counts
    assert [[event["value"] for event in request.events] for request in api.requests[1:]] == [[3, 9], list(range(10, 20))]
    assert len({request.key for request in api.requests}) == 3
    assert (counts.sent, counts.accepted, counts.rejected, counts.unaccounted) == (20, 19, 1, 0)
    assert sorted(answered) == list(range(20))


def test_a_lane_keeps_its_order_across_retries(api):
    """While a body waits for its turn again, the lane's next ones wait too; another lane goes on."""
    api.behave = lambda request, number: (503, {"Retry-After": "1"}, {}) if number == 1 else taken(len(request.events))
    frame = pl.concat([events(30, "a"), events(30, "b").with_columns(lane=1)])
    send(api, frame, lanes=2)
    for device in ("a", "b"):
        answered = [request for number, request in enumerate(api.requests) if number and request.events[0]["device"] == device]
        assert [event["value"] for request in answered for event in request.events] == list(range(30))
    stalled = api.requests[0].events[0]["device"]
    other = [request.at for request in api.requests if request.events[0]["device"] != stalled]
    assert other[-1] - api.requests[0].at < 0.9


def test_no_more_requests_in_flight_than_lanes(api):
    """Each lane has one request at a time."""
    flying: set[str] = set()
    most = []

    def behave(request: Request, number: int) -> Answer:
        flying.add(request.key)
        most.append(len(flying))
        time.sleep(0.005)
        flying.discard(request.key)
        return taken(len(request.events))

    api.behave = behave
    send(api, pl.concat([events(100).with_columns(lane=lane) for lane in range(3)]), lanes=3)
    assert 1 < max(most) <= 3


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_the_server_will_not_take_is_not_repeated(api, status):
    """Counted as refused, with the reason kept; the run goes on."""
    api.behave = lambda request, number: (status, {}, {"detail": "no"}) if number == 1 else taken(10)
    counts = send(api, events(20)).counts
    assert len(api.requests) == 2
    assert (counts.refused, counts.sent) == (10, 10)
    assert counts.refusals == {status: '{"detail": "no"}'}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, {"error": {"message": "token 1 is expired"}}), "token 1 is expired.*PIPELINE_TOKEN or --token-file"),
        ((403, {}, {}), "--token-file"),
        ((404, {}, {}), "check --url"),
        ((200, {}, {"hello": 1}), "check --url"),
        ((302, {}, {}), "check --url"),
    ],
)
def test_what_no_retry_can_mend_ends_the_run(api, answer, message):
    """One line with the remedy; nothing is counted as sent."""
    api.behave = lambda request, number: answer
    with pytest.raises(UserError, match=message):
        send(api, events(50))
    assert len(api.requests) == 1


def test_the_deadline_ends_the_patience(api):
    """A server that never takes a body: the run ends with the reason, after the deadline and not before."""
    api.behave = lambda request, number: (503, {}, {})
    began = time.monotonic()
    with pytest.raises(UserError, match="503"):
        send(api, events(30), deadline_s=2)
    assert time.monotonic() - began < 8
    assert len(api.requests) > 2


def test_a_server_that_takes_part_after_part_is_not_given_up(api):
    """The deadline is for a body of which nothing is taken: ten parts of it may take longer together."""

    def behave(request: Request, number: int) -> Answer:
        time.sleep(0.2)
        return 202, {"Retry-After": "0"}, {"accepted": 1, "rejected": 0, "not_admitted": list(range(1, len(request.events)))}

    api.behave = behave
    assert send(api, events(10), deadline_s=1.5).counts.accepted == 10
    assert api.requests[-1].at - api.requests[0].at > 1.5
    api.behave = lambda request, number: (202, {"Retry-After": "0"}, {"accepted": 0, "not_admitted": list(range(10))})
    with pytest.raises(UserError, match=r"202 Accepted, given up after \d s; it answers, but takes no more for now \(--deadline\)"):
        send(api, events(10), deadline_s=0.35)


def refuses(request: Request, number: int) -> Answer:
    return 503, {"Retry-After": "60"}, {}


def hangs(request: Request, number: int) -> Answer:
    time.sleep(3)
    return taken(len(request.events))


@pytest.mark.parametrize("behave", [refuses, hangs])
def test_a_stopped_run_does_not_wait_for_long(api, behave):
    """Once stopped, a server that refuses or hangs is waited for no longer than the drain time; the rest is undelivered."""
    api.behave = behave

    async def go() -> Sender:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, stop.set)
        async with Sender(api.url, stop=stop, drain_s=0.2) as sender:
            await sender.send_events(events(100), "json", 10)
        return sender

    began = time.monotonic()
    counts = asyncio.run(go()).counts
    assert time.monotonic() - began < 2
    assert (counts.sent, counts.undelivered) == (0, 100)


def test_the_token_is_a_bearer_token(api):
    send(api, events(1), token="s3cret")
    assert api.requests[0].token == "Bearer s3cret"


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    """Not from the command line, which everybody on the machine can read."""
    file = tmp_path / "token"
    file.write_text("tp_x_y\n")
    monkeypatch.delenv("PIPELINE_TOKEN", raising=False)
    assert (token_of(None), token_of(file)) == (None, "tp_x_y")
    monkeypatch.setenv("PIPELINE_TOKEN", "tp_e_e")
    assert (token_of(None), token_of(file)) == ("tp_e_e", "tp_x_y")
    for bad in (b"", b"two words", b"\xff\xfe", b"a\nb"):
        file.write_bytes(bad)
        with pytest.raises(UserError, match="it holds no token"):
            token_of(file)
    with pytest.raises(UserError, match="No such file"):
        token_of(tmp_path / "none")


def test_a_token_of_the_environment_is_cleaned_and_one_that_is_none_is_not_shown(monkeypatch):
    """A mounted secret ends with a newline. What HTTP cannot carry would be shown by the error of whoever tries."""
    for space in ("tp_e_e\n", " tp_e_e\r\n"):
        monkeypatch.setenv("PIPELINE_TOKEN", space)
        assert token_of(None) == "tp_e_e"
    monkeypatch.setenv("PIPELINE_TOKEN", "\n")
    assert token_of(None) is None
    for bad in ("tp_SECRET\nx", "tp_SECRET x", "tp_SECRETé", "tp_SECRET\udcff"):
        monkeypatch.setenv("PIPELINE_TOKEN", bad)
        with pytest.raises(UserError, match=r"^PIPELINE_TOKEN: it holds no token$"):
            token_of(None)


def test_the_certificates_that_are_believed(tmp_path, monkeypatch):
    """Those of --ca-file, else of SSL_CERT_FILE, else this machine's; a file that has none is named."""
    mine, other = (certificate(tmp_path, name)[0] for name in ("mine", "other"))
    names = {"commonName": "mine"}, {"commonName": "other"}
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    for context, name in zip((trusted(mine), trusted(None)), names, strict=True):
        assert [dict(*found["subject"]) for found in context.get_ca_certs()] == [name]
    monkeypatch.delenv("SSL_CERT_FILE")
    assert trusted(None).get_ca_certs() == ssl.create_default_context().get_ca_certs()
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")
    with pytest.raises(UserError, match=r"^SSL_CERT_FILE /nope: No such file or directory; expected certificates as PEM$"):
        trusted(None)
    with pytest.raises(UserError, match=r"^--ca-file /dev/null: .*; expected certificates as PEM$"):
        trusted(Path("/dev/null"))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://h:port", "http://h:99999", "http://h:-5"])
def test_a_url_that_is_none_is_named(url):
    with pytest.raises(UserError, match="--url"):
        Sender(url)


@pytest.mark.parametrize(("proxy", "message"), [("socks5://h:1", "ALL_PROXY: Using SOCKS"), ("what://h:1", "ALL_PROXY: Unknown scheme")])
def test_a_proxy_that_cannot_be_used_is_told(monkeypatch, proxy, message):
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where it is not installed
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match=message):
        Sender("http://h")
    with pytest.raises(UserError, match=message):
        asyncio.run(wait_for_server("http://h", 0, asyncio.Event()))


def test_integers_stay_exact_in_every_form():
    """2^64-1 and its neighbours arrive as integers beside floats, text and nulls, whatever the form."""
    large = [2**64 - 1, 2**64 - 2, 2**53 + 1, 2**53, 0]
    frame = pl.DataFrame(
        {"device": "d", "metric": "m", "integer": [*large, None, None], "number": [None] * 5 + [0.1, None], "text": [None] * 6 + ["n/a"]},
        schema_overrides={"integer": pl.UInt64, "number": pl.Float64, "text": pl.String},
    ).with_columns(timestamp=AT, tags=pl.struct(site=pl.lit('a"b')))
    for form in ("json", "ndjson"):
        sent = [event for body in bodies(frame, form, 3) for event in decode(CONTENT_TYPES[form], body.content)]
        assert [event["value"] for event in sent] == [*large, 0.1, "n/a"]
        assert all(isinstance(event["value"], int) for event in sent[:5])
        assert sent[0] == {"device": "d", "metric": "m", "timestamp": 1_700_000_000_000, "value": 2**64 - 1, "tags": {"site": 'a"b'}}
    sent = [event for body in bodies(frame, "arrow", 100) for event in decode(CONTENT_TYPES["arrow"], body.content)]
    assert {event["value"] for event in sent} == {*large, 0.1, None}
    assert len(sent) == 7


def test_arrow_holds_what_64_bits_hold():
    """Both ends of them side by side; an integer beyond is told, with where it is, and JSON sends it for the API to judge."""
    ends = [2**64 - 1, -(2**63), -(2**53) - 1, 2**53 + 1, 7]
    empty = {"number": pl.lit(None, pl.Float64), "text": pl.lit(None, pl.String), "timestamp": AT}
    frame = pl.DataFrame({"device": "d", "metric": "m", "integer": ends}, schema_overrides={"integer": pl.Int128}).with_columns(**empty)
    sent = [event["value"] for body in bodies(frame, "arrow", 100) for event in decode(CONTENT_TYPES["arrow"], body.content)]
    assert sorted(sent) == sorted(ends)
    for beyond in (2**64, -(2**63) - 1, 2**127 - 1, -(2**127)):
        odd = frame.with_columns(integer=pl.Series([*ends[:4], beyond], dtype=pl.Int128))
        with pytest.raises(UserError, match=f"^--form arrow cannot hold the integer {beyond} of device d, metric m"):
            list(bodies(odd, "arrow", 100))
        (body,) = bodies(odd, "json", 100)
        assert json.loads(body.content)[-1]["value"] == beyond


def test_tags_may_say_anything():
    """What looks like JSON in a tag's name or value stays as it is; a null is left out, wherever it stands."""
    odd = [":null", ":null,", ",", ",}", '"', '":null,"', "\\", "{", "}", "", "ü\n", "*", "^a.*$"]
    told = [{"a,": value, f"{value}:null": None, value: "x", "z": None} for value in odd] + [None, {}]
    names = sorted({name for tags in told for name in tags or {}})
    frame = pl.DataFrame(
        {"device": "d", "metric": "m", "value": 1.0, "tags": told}, schema_overrides={"tags": pl.Struct(dict.fromkeys(names, pl.String))}
    ).with_columns(timestamp=AT)
    for form in ("json", "ndjson"):
        (body,) = bodies(frame, form, 100)
        sent = [event["tags"] for event in decode(CONTENT_TYPES[form], body.content)]
        assert sent == [{name: value for name, value in (tags or {}).items() if value is not None} for tags in told]
    (body,) = bodies(frame.with_columns(tags=pl.lit({}, pl.Struct({}))), "json", 100)
    assert json.loads(body.content)[0]["tags"] == {}


def test_microseconds_are_kept():
    """A time with microseconds goes as RFC 3339; a null tag is left out."""
    frame = pl.DataFrame({"device": "d", "metric": "m", "value": 1.0, "tags": [{"a": "1", "b": None}], "timestamp": 1_700_000_000_000_001})
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))
    (body,) = bodies(frame, "json", 10)
    (event,) = json.loads(body.content)
    assert event["timestamp"] == "2023-11-14T22:13:20.000001Z"
    assert event["tags"] == {"a": "1"}
