"""The lock on the API's door, over real HTTP and HTTPS: who gets in, for what, and what is said to those who do not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import psutil
import pytest

from api.docs import EVENTS_PATH
from api.tls import Tls
from pipeline.core.tokens import Token, parts_of, spelled
from pipeline.errors import Invalid
from pipeline.stores.tokenbook import Tokenbook
from tests.certificates import certificate
from tests.harness import Stack, eventually

EVENT = {"device": "core-1", "metric": "cpu_pct", "value": 1.5}
READS = ("/v1/rules", "/v1/alerts", "/docs", "/openapi.json")
RELOAD = {"PIPELINE_RULES_RELOAD_SECONDS": "0.2", "PIPELINE_KEEP_ALIVE_SECONDS": "0.5"}


class Clients:
    """Tokens of a stack, and requests with them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.book = Tokenbook(stack.client)

    def token(self, *scopes: str, **fields: object) -> str:
        """A new one that the API knows already."""
        _, text = self.book.create(Token("", "test", scopes, b"", **fields))
        eventually(lambda: self.ask("GET", "/v1/none", text).status_code != 401, 5, "the API knows a new token")
        return text

    def ask(self, method: str, path: str, token: str | None = None, **options: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, self.stack.url + path, headers=headers, timeout=10, **options)

    def send(self, token: str | None, *events: dict) -> httpx.Response:
        return self.ask("POST", EVENTS_PATH, token, json=list(events) or [EVENT])


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Iterator[Clients]:
    with Stack(tmp_path_factory.mktemp("door"), fsync="everysec", PIPELINE_AUTH="required", **RELOAD) as stack:
        stack.start()
        yield Clients(stack)


def refusal(response: httpx.Response) -> tuple[int, str, str]:
    told = response.json()["error"]
    assert set(told) == {"code", "message"}
    assert response.status_code == 403 or response.headers["www-authenticate"].startswith("Bearer")
    return response.status_code, told["code"], told["message"]


def test_each_scope_is_good_for_its_own_and_admin_for_all(clients):
    tokens = {scope: clients.token(scope) for scope in ("ingest", "read", "admin")}
    rules = clients.ask("GET", "/v1/rules", tokens["read"]).text
    able: dict[str, set[str]] = {}
    for scope, token in tokens.items():
        answers = {path: clients.ask("GET", path, token) for path in READS}
        answers |= {EVENTS_PATH: clients.send(token), "PUT": clients.ask("PUT", "/v1/rules", token, content=rules)}
        able[scope] = {name for name, answer in answers.items() if answer.is_success}
        assert {answer.status_code for answer in answers.values() if not answer.is_success} <= {403}
    identity = parts_of(tokens["admin"].encode())[0]
    assert f"PUT /v1/rules by token {identity}" in clients.stack.telemetry("rules", "history").stdout
    assert able == {"ingest": {EVENTS_PATH}, "read": set(READS), "admin": {*READS, EVENTS_PATH, "PUT"}}
    status, code, message = refusal(clients.send(tokens["read"]))
    identity = parts_of(tokens["read"].encode())[0]
    assert (status, code, message) == (403, "forbidden", f"token {identity} has scope read; this needs ingest")


def test_health_is_for_all_and_nothing_else_is(clients):
    assert [clients.ask("GET", path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    for method, path in [("GET", path) for path in (*READS, "/", "/nowhere", "/healthz/x", "//healthz", "/healthz/")] + [
        ("PUT", "/v1/rules"), ("DELETE", "/v1/rules"), ("GET", EVENTS_PATH), ("OPTIONS", EVENTS_PATH), ("POST", "/V1/EVENTS"),
    ]:  # fmt: skip
        assert refusal(clients.ask(method, path))[:2] == (401, "unauthorized"), (method, path)


def test_whom_the_door_turns_away_is_counted(clients):
    """Of senders alone: a collector whose token has expired is to be seen by who watches the pipeline."""
    reader = clients.token("read")

    def denied() -> float:
        lines = clients.ask("GET", "/metrics", reader).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith('pipeline_http_requests_total{status="denied"}'))

    before = denied()
    assert [clients.send(None).status_code, clients.send(reader).status_code] == [401, 403]
    assert clients.ask("GET", "/v1/rules").status_code == 401
    assert denied() == before + 2


def test_who_has_no_good_token_is_told_why_and_never_shown_one(clients):
    good = clients.token("ingest")
    identity, secret = parts_of(good.encode())
    expired = clients.token("ingest", expires_at_us=time.time_ns() // 1000 + 1_000_000)
    other = spelled(identity, ("A" if secret[:1] != b"A" else "B") + secret.decode()[1:])
    unknown = spelled("0" * 12, secret.decode())
    eventually(lambda: clients.send(expired).status_code == 401, 5, "it expires")
    told = {text: refusal(clients.send(text)) for text in (None, other, unknown, "nonsense", expired)}
    assert {(status, code) for status, code, _ in told.values()} == {(401, "unauthorized")}
    assert "scope ingest is needed" in told[None][2] and "is expired" in told[expired][2]
    assert told[other][2] == told[unknown][2] == "the token is not known here"
    assert "Bearer tp_ID_SECRET" in told["nonsense"][2]
    for header in ("Basic dXNlcjpwYXNz", "Bearer", f"bearer  {good}", f"Token {good}", "\xff" * 100):
        answer = httpx.post(clients.stack.url + EVENTS_PATH, json=EVENT, headers={b"Authorization": header.encode("latin-1")})
        assert (answer.status_code == 202) == header.startswith("bearer")
    said = clients.stack.logs() + "".join(message for _, _, message in told.values())
    assert secret.decode() not in said and parts_of(expired.encode())[1].decode() not in said


def test_a_revoked_token_is_refused_within_seconds_by_every_api(clients):
    token = clients.token("ingest")
    assert clients.send(token).status_code == 202
    done = clients.stack.telemetry("tokens", "revoke", parts_of(token.encode())[0])
    assert done.returncode == 0 and "is revoked" in done.stdout
    eventually(lambda: clients.send(token).status_code == 401, 2, "the API refuses it")
    assert "is revoked" in refusal(clients.send(token))[2]


def test_events_of_other_devices_are_set_aside_and_the_others_taken(clients):
    """In one body, beside bodies of other tokens; what is wrong with the device itself is said first."""
    token, free = clients.token("ingest", devices=("core-*", "edge-?")), clients.token("ingest")
    mixed = [{**EVENT, "device": device} for device in ("core-1", "lab-1", "edge-1", "edge-11", "", "core-2")]
    answer = clients.send(token, *mixed).json()
    assert (answer["accepted"], answer["rejected"]) == (3, 3)
    told = [(1, "device", "not_permitted"), (3, "device", "not_permitted"), (4, "device", "missing")]
    assert [tuple(error.values()) for error in answer["errors"]] == told
    assert clients.send(free, *mixed).json()["accepted"] == 5
    many = [{**EVENT, "device": f"{'core' if n % 3 else 'lab'}-{n % 700}", "value": n} for n in range(20_000)]
    assert clients.send(token, *many).json()["rejected"] == sum(n % 3 == 0 for n in range(20_000))


def test_a_rate_is_kept_to(clients):
    """By who waits as told; one body may be larger than the rate, and is paid off."""
    token = clients.token("ingest", rate=200.0)
    assert clients.send(token, *[EVENT] * 500).status_code == 202
    answer = clients.send(token)
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (429, "rate_exceeded", "2")
    began = time.monotonic()
    eventually(lambda: clients.send(token).status_code == 202, 5, "it may come again")
    assert time.monotonic() - began > 1
    assert clients.send(clients.token("ingest"), *[EVENT] * 500).status_code == 202


def test_an_idempotency_key_belongs_to_a_token(clients):
    """Nobody gets, or spoils, the answer of another."""
    first, second = clients.token("ingest"), clients.token("ingest")

    def once(token: str, value: int) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "the-same"}
        return httpx.post(clients.stack.url + EVENTS_PATH, json={**EVENT, "value": value}, headers=headers)

    assert [once(first, 1).status_code, once(second, 2).status_code, once(first, 2).status_code] == [202, 202, 422]
    assert once(first, 1).headers["idempotent-replay"] == "true"


def test_new_rules_are_taken_over_the_version_they_are_meant_for(clients):
    """A tag may be weak, as a proxy makes it, and * is any. A document that is wrong is told from one that came too late."""
    headers = {"Authorization": f"Bearer {clients.token('admin')}"}
    shown = httpx.get(f"{clients.stack.url}/v1/rules", headers=headers)
    newest = int(shown.headers["x-rules-version"])

    def put(match: str, document: str = shown.text) -> tuple[int, dict]:
        answer = httpx.put(f"{clients.stack.url}/v1/rules", content=document, headers=headers | {"If-Match": match})
        return answer.status_code, answer.json()

    assert put("*") == (200, {"version": newest + 1})
    assert put(f'W/"{newest + 1}"') == (200, {"version": newest + 2})
    assert put(f'"{newest + 2}"') == (200, {"version": newest + 3})
    assert [put(match)[0] for match in (f'W/"{newest}"', f'"{newest}"', "W/x", "")] == [412, 412, 400, 400]
    status, told = put("*", "somebody else: 1\n")
    assert (status, told["error"]["code"]) == (422, "invalid") and "somebody else" in told["error"]["message"]


def test_what_openapi_says_of_the_lock(clients):
    document = clients.ask("GET", "/openapi.json", clients.token("read")).json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            locked = path not in ("/healthz", "/readyz")
            assert ("security" in operation, "401" in operation["responses"], "403" in operation["responses"]) == (locked,) * 3
    assert "429" in document["paths"][EVENTS_PATH]["post"]["responses"]


def test_the_last_known_tokens_stay_in_force_while_redis_is_away(tmp_path):
    """An API that has never seen one asks to come again: nobody knows whether the token is good."""
    with Stack(tmp_path, PIPELINE_AUTH="required", PIPELINE_REDIS_TIMEOUT_SECONDS="1", **RELOAD) as stack:
        stack.start()
        token = Clients(stack).token("ingest", "read")
        stack.kill_redis()
        time.sleep(1)
        assert Clients(stack).ask("GET", "/openapi.json", token).status_code == 200
        assert Clients(stack).send(token).status_code == 503
        assert Clients(stack).send(None).status_code == 401
        stack.api.kill()
        stack.api.wait()
        stack.start_api()
        eventually(lambda: _alive(stack), 20, "a new API listens")
        answer = Clients(stack).send(token)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        reason = httpx.get(f"{stack.url}/readyz").json()["reason"]
        assert reason == "Redis cannot be used now"  # not where it is
        stack.start_redis()
        eventually(lambda: Clients(stack).send(token).status_code == 202, 20, "it is known again")


def _alive(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


# ---- the commands --------------------------------------------------------------------------------------------------------------


def test_tokens_on_the_command_line(clients, tmp_path):
    telemetry = clients.stack.telemetry
    made = telemetry("tokens", "create", "--name", "me", "--scope", "read", "--device", "a-*", "--rate", "5", "--expires", "90d")
    identity, secret = parts_of(made.stdout.strip().encode())
    assert made.returncode == 0 and secret.decode() not in made.stderr
    rows = [json.loads(line) for line in telemetry("tokens", "list", "--json").stdout.splitlines()]
    [row] = [row for row in rows if row["id"] == identity]
    lasts = datetime.fromisoformat(row["expires"]) - datetime.now(UTC)
    assert (row["name"], row["state"], row["scopes"], row["devices"], row["rate"]) == ("me", "valid", ["read"], ["a-*"], 5)
    assert 89 < lasts.total_seconds() / 86_400 < 90.1
    shown = telemetry("tokens", "list").stdout
    assert identity in shown and secret.decode() not in shown + json.dumps(rows)

    file = tmp_path / "held.token"
    command = ("tokens", "create", "--name", "held", "--scope", "ingest", "--file", str(file), "--keep")
    said = telemetry(*command)
    first = file.read_text()
    assert said.returncode == 0 and first.strip() not in said.stdout + said.stderr and file.stat().st_mode & 0o777 == 0o600
    assert "already, and valid" in telemetry(*command).stdout and file.read_text() == first
    telemetry("tokens", "revoke", parts_of(first.strip().encode())[0])
    assert telemetry(*command).returncode == 0 and file.read_text() != first


def test_a_token_is_kept_where_it_is_what_is_asked_for_and_not_taken_for_another(clients, tmp_path):
    """Nobody believes that a bound is in force which was asked for too late."""
    file = tmp_path / "bounded.token"
    command = ("tokens", "create", "--name", "bounded", "--scope", "ingest", "--file", str(file), "--keep")
    bounds = ("--device", "a-*", "--device", "b-*", "--rate", "5", "--expires", "1h")
    assert clients.stack.telemetry(*command, *bounds).returncode == 0
    held = file.read_text()
    assert "already, and valid" in clients.stack.telemetry(*command, *bounds).stdout
    for others, said in (((), "--device, another --rate, another --expires"), ((*bounds[:-1], "2h"), "--expires"),
                         ((*bounds, "--device", "c-*"), "--device"), ((*bounds, "--rate", "6"), "--rate")):  # fmt: skip
        refused = clients.stack.telemetry(*command, *others)
        told = f"has another {said}: revoke it first, or leave out --keep\n"
        assert refused.returncode == 2 and refused.stderr.endswith(told) and refused.stderr.count("\n") == 1
    assert file.read_text() == held


def test_a_token_that_ends_after_all_years_hides_no_other(clients):
    """One that was made before its time had a bound."""
    ends = 2**60 // 1_000_000
    token, _ = clients.book.create(Token("", "eternal", ("read",), b"", expires_at_us=2**60))
    try:
        assert f"{token.id}  valid    read     eternal  created" in clients.stack.telemetry("tokens", "list").stdout
        rows = [json.loads(line) for line in clients.stack.telemetry("tokens", "list", "--json").stdout.splitlines()]
        assert {row["expires"] for row in rows if row["id"] == token.id} == {f"{ends} s after 1970"}
    finally:
        clients.book.revoke(token.id)


def test_where_its_file_cannot_be_written_no_secret_stays_behind_and_the_token_is_revoked(clients, tmp_path):
    folder = tmp_path / "tokens"
    folder.mkdir()
    done = clients.stack.telemetry("tokens", "create", "--name", "nobody-has-it", "--scope", "read", "--file", str(folder))
    assert (done.returncode, done.stderr) == (2, f"telemetry: cannot write {folder}: Is a directory; choose another --file\n")
    assert list(tmp_path.iterdir()) == [folder] and not list(folder.iterdir())
    [token] = [token for token in clients.book.load().by_id.values() if token.name == "nobody-has-it"]
    assert token.state(0) == "revoked"


def test_a_file_with_a_token_that_is_good_is_not_written_over(clients, tmp_path):
    file = tmp_path / "dashboard.token"
    command = ("tokens", "create", "--name", "dashboard", "--scope", "read", "--file", str(file))
    assert clients.stack.telemetry(*command).returncode == 0
    held = file.read_text()
    identity = held.split("_")[1]
    done = clients.stack.telemetry(*command)
    said = f"telemetry: {file} holds token {identity} of dashboard: choose another --file, or revoke it first\n"
    assert (done.returncode, done.stderr, file.read_text()) == (2, said, held)
    assert clients.stack.telemetry("tokens", "revoke", identity).returncode == 0
    assert clients.stack.telemetry(*command).returncode == 0 and file.read_text() != held


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("revoke", "000000000000"), "there is no token"), (("create", "--name", "", "--scope", "read"), "a token's name"),
     (("create", "--name", "x", "--scope", "read", "--file", "no/such/folder/token"), "choose another --file"),
     (("create", "--name", "x", "--scope", "read", "--rate", "-1"), "must be more than 0"),
     (("create", "--name", "x", "--scope", "read", "--keep"), "needs --file"),
     (("create", "--name", "x", "--scope", "root"), "invalid choice"),
     (("create", "--name", "x", "--scope", "read", "--expires", "9"), "no time"),
     (("create", "--name", "x", "--scope", "read", "--expires", "3000000d"), "more than 36500d")],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(clients, arguments, said):
    done = clients.stack.telemetry("tokens", *arguments)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_the_simulator_comes_with_a_token_that_no_process_list_shows(clients, tmp_path):
    token = clients.token("ingest")
    file = tmp_path / "token"
    file.write_text(token)
    command = ("simulate", "--url", clients.stack.url, "--for", "3s", "--rate", "200", "--json")
    refused = clients.stack.telemetry(*command)
    assert refused.returncode == 2 and "PIPELINE_TOKEN or --token-file" in refused.stderr
    assert json.loads(clients.stack.telemetry(*command, "--token-file", str(file)).stdout.splitlines()[-1])["accepted"] > 0
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *command], env=clients.stack.environment | {"PIPELINE_TOKEN": token},
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1])["accepted"] > 0


def test_up_beyond_loopback_lets_its_own_simulator_in(tmp_path):
    """With a token that is in a file of its owner's, and in no command line; PIPELINE_TOKEN is for no other role."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    environment |= {"PIPELINE_API_HOST": "0.0.0.0", "PIPELINE_TOKEN": "tp_of_mine"}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        up = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "up", "--port", "0", "--window", "2s", "--for", "9s", "--json"],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        )  # fmt: skip
    try:
        file = tmp_path / "data" / "simulator.token"
        roles = psutil.Process(up.pid)

        def begun() -> bool:
            """A process that was only just made looks like the one that made it."""
            lines = [role.cmdline() for role in roles.children()]
            return len(lines) >= 6 and roles.cmdline() not in lines

        eventually(begun, 30, "all roles and Redis run")
        secret = parts_of(file.read_text().strip().encode())[1].decode()
        told = {" ".join(role.cmdline()): role.environ() for role in roles.children()}
        assert not any(secret in line or secret in "".join(env.values()) for line, env in told.items())
        assert [line for line, env in told.items() if "PIPELINE_TOKEN" in env] == [line for line in told if " simulate " in line]
        assert up.wait(90) == 0, (tmp_path / "err").read_text()[-2000:]
    finally:
        if up.poll() is None:
            up.terminate()
            up.wait(60)
    assert json.loads((tmp_path / "out").read_text())["accepted"] > 0 and file.stat().st_mode & 0o777 == 0o600
    assert secret not in (tmp_path / "err").read_text()


def test_an_idle_connection_ends_when_it_is_told_to(clients):
    with socket.create_connection(("127.0.0.1", clients.stack.port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        began, stream = time.monotonic(), connection.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 200")
        stream.read()  # until it hangs up
        assert 0.3 < time.monotonic() - began < 3


def test_no_secret_is_said_by_check(clients):
    environment = {"PIPELINE_TOKEN": "tp_secret", "PIPELINE_REDIS_URL": f"redis://:hunter2@127.0.0.1:{clients.stack.redis_port}"}
    command = [sys.executable, "-m", "pipeline", "check"]
    done = subprocess.run(command, env=clients.stack.environment | environment, capture_output=True, text=True, timeout=60)
    assert "hunter2" not in done.stdout + done.stderr and "tp_secret" not in done.stdout + done.stderr
    told = clients.stack.telemetry("check").stdout
    assert "a token is needed" in told and "tokens: " in told


# ---- TLS -----------------------------------------------------------------------------------------------------------------------


def test_https_from_a_token_to_a_row_and_a_certificate_that_changes(tmp_path):
    cert, key = certificate(tmp_path)
    tls = {"PIPELINE_TLS_CERT_FILE": str(cert), "PIPELINE_TLS_KEY_FILE": str(key), "PIPELINE_REQUEST_SECONDS_MAX": "2"}
    with Stack(tmp_path / "stack", PIPELINE_AUTH="required", **RELOAD, **tls) as stack:
        stack.start_worker()
        stack.start_api()
        url, trusted = f"https://127.0.0.1:{stack.port}", ssl.create_default_context(cafile=cert)

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/readyz", verify=trusted, timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        eventually(ready, 30, "the API is ready")
        with pytest.raises(httpx.HTTPError):  # neither in the clear, nor for who does not believe the certificate
            httpx.get(f"http://127.0.0.1:{stack.port}/healthz")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")

        with socket.create_connection(("127.0.0.1", stack.port), timeout=6) as silent:  # a handshake that never comes has its time, too
            assert silent.recv(1) == b""

        file = tmp_path / "token"
        assert stack.telemetry("tokens", "create", "--name", "x", "--scope", "ingest", "--file", str(file)).returncode == 0
        time.sleep(0.5)
        command = ("simulate", "--url", url, "--token-file", str(file), "--for", "3s", "--rate", "200", "--json")
        done = stack.telemetry(*command)
        assert done.returncode == 2 and "--ca-file, or SSL_CERT_FILE" in done.stderr
        done = stack.telemetry(*command, "--ca-file", str(cert))
        assert json.loads(done.stdout.splitlines()[-1])["accepted"] > 0, done.stderr
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command], env=stack.environment | {"SSL_CERT_FILE": str(cert)},
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
        )  # fmt: skip
        assert json.loads(done.stdout.splitlines()[-1])["accepted"] > 0, done.stderr

        newer_cert, newer_key = certificate(tmp_path, "newer")
        shutil.copy(newer_cert, cert)  # half of it: the old one stays
        eventually(lambda: "the certificate in use stays" in stack.logs(), 10, "it is said")
        assert httpx.get(f"{url}/healthz", verify=trusted).status_code == 200
        shutil.copy(newer_key, key)
        trusted_now = ssl.create_default_context(cafile=newer_cert)

        def renewed() -> bool:
            try:
                return httpx.get(f"{url}/healthz", verify=trusted_now).status_code == 200
            except httpx.ConnectError:
                return False

        eventually(renewed, 10, "new connections get the new certificate")


@pytest.mark.parametrize("case", ["absent", "unpaired", "readable", "encrypted", "garbage", "swapped"])
def test_what_is_wrong_with_a_certificate_is_said_in_a_line(tmp_path, case):
    cert, key = certificate(tmp_path)
    said = {"absent": "No such file", "unpaired": "is not the key of", "readable": "chmod 600", "encrypted": "openssl pkey",
            "garbage": "both must be PEM", "swapped": "both must be PEM"}[case]  # fmt: skip
    if case == "absent":
        key.unlink()
    elif case == "unpaired":
        key = certificate(tmp_path, "other")[1]
    elif case == "readable":
        key.chmod(0o644)
    elif case == "encrypted":
        cert, key = certificate(tmp_path, "locked", b"password")
    elif case == "garbage":
        cert.write_text("nothing")
    else:
        cert.chmod(0o600)
        cert, key = key, cert
    with pytest.raises(Invalid) as refused:
        Tls(cert, key)
    assert said in str(refused.value) and "\n" not in str(refused.value) and str(refused.value).startswith("PIPELINE_TLS_")


def test_one_file_without_the_other_is_refused(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    command = [sys.executable, "-m", "pipeline", "check"]
    for name, other in (("CERT", "KEY"), ("KEY", "CERT")):
        told = environment | {f"PIPELINE_TLS_{name}_FILE": "x.pem"}
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        assert done.returncode == 2 and f"PIPELINE_TLS_{name}_FILE is set and PIPELINE_TLS_{other}_FILE is not" in done.stderr
