"""The door of rules: PUT /v1/rules with YAML that is too much, too deep, too odd, or nearly right."""

from __future__ import annotations

import json
import random
from pathlib import Path

import httpx

from pipeline.core.rules import STATISTICS
from pipeline.errors import Invalid
from pipeline.stores.rulebook import read_document
from tests.fuzz.door import Verdict, rng_of
from tests.fuzz.ground import Ground
from tests.fuzz.json_texts import damage

SCALARS = [
    "1",
    "-1",
    "0",
    "1e400",
    "-.inf",
    ".nan",
    "1e308",
    "0x10",
    "010",
    "1_000",
    "9" * 400,
    "9" * 5000,
    "1e-400",
    "true",
    "no",
    "~",
    "null",
    "''",
    '"\\u0000"',
    '"\\ud800"',
    "text",
    "2026-01-01",
    "1:30",
    "!!python/object:os.system {}",
    "!!binary aGk=",
    "!!set {a}",
    "&a 1",
    "*a",
    "[]",
    "{}",
    "[1, 2]",
    "{a: b}",
    "{warning: 80, critical: 90, clear: 70}",
    "{warning: 90, critical: 80}",
    "{warning: .inf}",
    "{warning: 1e999}",
    "{clear: 1}",
    "{warning: [1]}",
    "30s",
    "-5s",
    "1e9h",
    "9999999999999999999h",
    "5 m",
    "500ms",
    "| \n   block",
    "> \n   folded",
    "'*'",
    "'" + "*" * 3999 + "'",
    "'" + "?" * 3999 + "'",
    "'" + "*a" * 2000 + "'",
    "'" + "?*" * 1999 + "'",
    "'" + "ä" * 3999 + "'",
    "'(a+)+$'",
    "'[a-'",
    "'\\\\'",
    "'a{1000000}'",
    "'" + "x" * 100_000 + "'",
    "['" + "', '".join(f"*{i}*" for i in range(900)) + "']",
]
KEYS = [
    "name",
    "metric",
    "device",
    "interface",
    "on",
    "statistic",
    "for",
    "upper",
    "lower",
    "overrides",
    "disabled",
    "description",
    "unknown",
    "<<",
    "?",
    "'on'",
    "1",
    "~",
]
START = "rules:\n  - name: first\n    metric: '*'\n    upper: {warning: 80}\n"


def _rule(rng: random.Random, name: str) -> dict[str, str]:
    rule = {"name": name, "metric": rng.choice(["cpu_pct", "'*'", "['*octets', 'if/*']"]), rng.choice(["upper", "lower"]): "{warning: 80}"}
    if rng.random() < 0.3:
        rule |= {"on": "window", "statistic": rng.choice(STATISTICS)}
    return rule


def _render(rules: list[dict[str, str]]) -> str:
    return "rules:\n" + "".join("  - " + "\n    ".join(f"{key}: {value}" for key, value in rule.items()) + "\n" for rule in rules)


def near(rng: random.Random) -> tuple[str, bytes]:
    """Valid, but for a field that is anything."""
    rules = [_rule(rng, f"r{i}") for i in range(rng.choice([1, 3]))]
    for _ in range(rng.choice([1, 1, 2])):
        rng.choice(rules)[rng.choice(KEYS)] = rng.choice(SCALARS)
    if rng.random() < 0.1:
        rules.append(dict(rules[0]))
    return "near", _render(rules).encode(errors="surrogatepass")


def bent(rng: random.Random) -> tuple[str, bytes]:
    return "bent", damage(rng, _render([_rule(rng, f"r{i}") for i in range(3)]).encode())


def bomb(rng: random.Random) -> tuple[str, bytes]:
    """Aliases of aliases, depth, and very much of anything."""
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
    )
    depth = rng.choice([30, 1000, 100_000])
    big = rng.choice([499_000, 2_500_000])
    many = "".join(f"  - {{name: r{i}, metric: m{i}, upper: {{warning: 1}}}}\n" for i in range(rng.choice([999, 1001, 9000])))
    choices = {
        "laughs": laughs,
        "deep": "[" * depth,
        "deep-map": "{a: " * depth,
        "deep-block": "".join(" " * i + "a:\n" for i in range(min(depth, 600))),
        "dashes": "- " * depth,
        "questions": "? " * depth,
        "anchors": "".join(f"- &a{i} x\n" for i in range(20_000)),
        "long-text": "rules: " + "x" * big,
        "many-items": "rules: [" + "a," * (big // 2) + "]",
        "many-keys": "".join(f"k{i}: v\n" for i in range(40_000)),
        "many-rules": "rules:\n" + many,
        "comments": "#" * big,
        "blank": " " * big,
        "documents": "---\n" * 10_000,
        "digits": "rules: " + "9" * big,
        "merge": "a: &a {b: c}\nrules:\n  - <<: *a\n",
        "quotes": "rules: '" + "''" * (big // 2) + "'",
        "folds": "rules: >\n" + " x\n" * (big // 3),
        "tags": "!a " * 1000,
        "directives": "%YAML 1.1\n" * 100,
        "overrides": "rules:\n  - name: o\n    metric: '*'\n    upper: {warning: 1}\n    overrides:\n"
        + "      - {device: x, upper: {warning: 2}}\n" * rng.choice([50, 9000]),
    }
    kind = rng.choice(list(choices))
    return f"bomb-{kind}", choices[kind].encode()


def binary(rng: random.Random) -> tuple[str, bytes]:
    content = rng.choice(
        [
            b"",
            b" ",
            b"null",
            b"[]",
            b"1",
            b"\x00",
            b"\xff\xfe" + START.encode("utf-16-le"),
            START.encode("utf-16"),
            b"\xef\xbb\xbf" + START.encode(),
            rng.randbytes(300),
            START.encode() + b"\x00",
            START.encode() + b"\x07",
            START.encode() + "\u2028\ufeff".encode(),
            START.replace("\n", "\r").encode(),
            START.replace("  ", "\t").encode(),
            json.dumps({"rules": [{"name": "j", "metric": "x", "upper": {"warning": 1}}]}).encode(),
            b'{"rules": []}',
            b"rules:",
            b"{",
            b"rules: [}",
            b"%!PS",
            b"--- >\n",
        ]
    )
    return "binary", content


class Documents:
    """Each is refused with a place and a reason and changes nothing, or is a valid new version."""

    name = "rules"
    threads = 1
    SECONDS_MAX = 5.0

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._client = httpx.Client(base_url=ground.stack.url, timeout=30)

    def _case(self, seed: int, number: int) -> tuple[str, bytes, dict[str, str]]:
        rng = rng_of(seed, self.name, number)
        kind, content = rng.choices([near, bent, bomb, binary], [10, 5, 3, 3])[0](rng)
        headers = {}
        if rng.random() < 0.1:
            headers["if-match"] = rng.choice(["0", '"1"', "x", "*", "-1", "1e3", "9" * 30, '""', 'W/"1"'])
        return kind, content, headers

    def show(self, seed: int, number: int) -> tuple[str, bytes]:
        kind, content, _ = self._case(seed, number)
        return kind, content

    def attempt(self, seed: int, number: int) -> Verdict:
        _, content, headers = self._case(seed, number)
        before = self._version()
        response = self._client.put("/v1/rules", content=content, headers=headers)
        after = self._version()
        status = response.status_code
        if response.elapsed.total_seconds() > self.SECONDS_MAX:
            return Verdict(f"{status // 100}xx", f"it took {response.elapsed.total_seconds():.1f} s; {self.SECONDS_MAX:g} are allowed")
        if status == 200:
            if (response.json(), after) != ({"version": before + 1}, before + 1):
                return Verdict("2xx", f"answered {response.text}, and the version went from {before} to {after}")
            try:
                read_document(content.decode())
            except (Invalid, UnicodeDecodeError) as error:
                return Verdict("2xx", f"taken, although {error}")
            return Verdict("2xx")
        wrong = "" if after == before else f"refused, but the version went from {before} to {after}"
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return Verdict(f"{status // 100}xx", f"no reason: {response.text[:200]}")
        if status not in (400, 412, 413, 422):
            wrong = f"answered {status} {message[:300]}"
        elif status == 422 and not (message.startswith("line ") or "characters" in message):
            wrong = f"no line: {message[:300]}"
        elif len(message) > 2000 or "\n" in message:
            wrong = f"a message of {len(message)} characters, or of several lines: {message[:300]!r}"
        return Verdict(f"{status // 100}xx", wrong)

    def _version(self) -> int:
        return int(self._client.get("/v1/rules").headers["x-rules-version"])

    def finish(self) -> list[str]:
        """The shipped rules again, and a worker that takes them."""
        default = (Path(__file__).parents[2] / "pipeline" / "default_rules.yaml").read_bytes()
        response = self._client.put("/v1/rules", content=default)
        return [] if response.status_code == 200 else [f"the shipped rules were refused: {response.text[:300]}"]
