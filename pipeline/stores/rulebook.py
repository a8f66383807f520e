"""The versions of the rules document: an append-only list in Redis. Version N is its N-th item."""

from __future__ import annotations

import difflib
import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import redis
import yaml

from pipeline.core.admission import Limits
from pipeline.core.rules import RULES_MAX, Rules, parse
from pipeline.errors import Invalid, Outdated
from pipeline.stores.connection import script, translated

KEY = "rules"
DOCUMENT_CHARS_MAX = 500_000
DEPTH_MAX = 20  # of a document; its own shape needs 6
EVENTS_MAX = 50_000  # of a document, as a YAML parser counts them: 1000 rules of any sort fit, and it reads no longer than seconds
DEFAULT = Path(__file__).parents[1] / "default_rules.yaml"


class Version(NamedTuple):
    number: int
    document: str
    created_at: str  # RFC 3339, by Redis' clock
    comment: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2's words and numbers: `on` is a word, 010 is ten, 1e3 a number, 1:30 and a date are texts."""


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("bool", "int", "float", "timestamp", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_NUMBER = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("-+.0123456789"))


def read_document(text: str, version: int = 0) -> Rules:
    """The rules that a YAML (or JSON) text holds. Invalid: the line, the field, and what is wrong there."""
    if len(text) > DOCUMENT_CHARS_MAX:
        raise Invalid(f"the document has {len(text)} characters; {DOCUMENT_CHARS_MAX} are allowed")
    try:
        _refuse_unsupported(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[tuple, int] = {}
        _note_lines(node, (), lines)
        document = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Invalid(f"line {mark.line + 1 if mark else 1}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Invalid(f"line {line}: not YAML: the character #x{error.character:04x} is not allowed") from None
    return parse(document, version, lines)


def _refuse_unsupported(text: str) -> None:
    """Invalid: what YAML can do and a rules document needs not, some of which would cost a reader much time."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1
        if number > EVENTS_MAX:
            raise Invalid(f"line {line}: the document holds more than any {RULES_MAX} rules need")
        if isinstance(event, yaml.AliasEvent):
            raise Invalid(f"line {line}: *{event.anchor}: aliases are not supported")
        if getattr(event, "tag", None) is not None:
            raise Invalid(f"line {line}: {event.tag.replace(_TAG, '!!')}: tags are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            raise Invalid(f"line {line}: nested deeper than {DEPTH_MAX}")


def _note_lines(node: yaml.Node | None, path: tuple, lines: dict[tuple, int]) -> None:
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
                raise Invalid(f"line {line}: a key must be a word")
            if key.value in seen:
                raise Invalid(f"line {line}: {key.value}: is there twice")
            seen.add(key.value)
            lines[(*path, key.value)] = line
            _note_lines(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _note_lines(item, (*path, i), lines)


class Rulebook:
    """Read and append versions. Everything that is appended was validated first, as a whole."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._append = client.register_script(script("rulebook"))

    def version(self) -> int:
        """The number of the newest version; 0: none."""
        with translated():
            return self._redis.llen(KEY)

    def get(self, number: int | None = None) -> Version:
        """A version, or the newest. Invalid: there is no such version."""
        with translated():
            count = self._redis.llen(KEY)
            wanted = count if number is None else number
            raw = self._redis.lindex(KEY, wanted - 1) if 1 <= wanted <= count else None
        if raw is None:
            raise Invalid(f"there is no version {wanted} of the rules; the newest is {count}")
        return _version(wanted, raw)

    def history(self) -> list[Version]:
        """All versions, oldest first."""
        with translated():
            return [_version(i + 1, raw) for i, raw in enumerate(self._redis.lrange(KEY, 0, -1))]

    def set(self, document: str, comment: str = "", *, only_if_version: int | None = None) -> int:
        """Validate and append; the new version's number. Invalid: nothing changed, and why.

        `only_if_version`: refuse unless that is still the newest, with Outdated.
        """
        read_document(document)
        record = json.dumps({"document": document, "comment": comment})
        with translated():
            number = self._append(keys=[KEY], args=[record, "" if only_if_version is None else only_if_version])
        if number < 0:
            raise Outdated(f"the rules are at version {-number - 1}, not {only_if_version}: somebody else changed them")
        return number

    def set_default(self) -> None:
        """Begin with the shipped rules where there are none."""
        if self.version() == 0:
            with translated():
                record = {"document": DEFAULT.read_text(encoding="utf-8"), "comment": "shipped with the pipeline"}
                self._append(keys=[KEY], args=[json.dumps(record), 0])

    def restore(self, document: str) -> None:
        """Begin again with the document that was in force before Redis lost its memory, unless somebody was faster."""
        with translated():
            self._append(keys=[KEY], args=[json.dumps({"document": document, "comment": "restored: Redis had lost the rules"}), 0])

    def rollback(self, number: int) -> int:
        """Append a copy of an earlier version; the new version's number."""
        return self.set(self.get(number).document, f"rollback to version {number}")

    def diff(self, old: int, new: int) -> str:
        """What changed from one version to another, as a unified diff; empty where nothing did."""
        texts = [self.get(number).document.splitlines() for number in (old, new)]
        return "".join(f"{line}\n" for line in difflib.unified_diff(*texts, f"version {old}", f"version {new}", lineterm=""))


def limits_of(rulebook: Rulebook) -> Limits:
    """What the newest version says about admission."""
    return _limits_in(rulebook.get().document) if rulebook.version() else Limits()


@lru_cache(maxsize=1)
def _limits_in(document: str) -> Limits:
    return read_document(document).admission  # a large document takes a second, and is asked for every few


def _version(number: int, raw: bytes) -> Version:
    record = json.loads(raw)
    created = datetime.fromtimestamp(record["created_at"], UTC).isoformat().replace("+00:00", "Z")
    return Version(number, record["document"], created, record["comment"])
