"""Which file of a job goes where: rules as data (`layout.toml`), and no name that could do harm."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from string import Formatter

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ncr_worker.errors import ConfigError, Rejected
from ncr_worker.settings import Settings

DEFAULT = Path(__file__).with_name("layout.toml")
LONGEST_NAME = 255
LONGEST_PATH = 1024
_ABOUT_JOB = {"job_id", "sku"}
_ABOUT_FILE = {"path", "file", "name", "ext", "parent"}
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _fields(template: str) -> set[str]:
    """The names in `template`. Raises ValueError for anything but plain `{name}`."""
    names = set()
    for _, name, form, conversion in Formatter().parse(template):
        if name is not None:
            if form or conversion or not name.isidentifier():
                raise ValueError(f"only plain names may stand in braces: {template!r}")
            names.add(name)
    return names


class Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str | None = None
    regex: str | None = None
    target: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if (self.match is None) == (self.regex is None):
            raise ValueError("a rule has either match or regex")
        allowed = _ABOUT_JOB | _ABOUT_FILE | set(self.pattern.groupindex)
        if unknown := _fields(self.target or "") - allowed:
            raise ValueError(f"target {self.target!r}: unknown {sorted(unknown)}; there are {sorted(allowed)}")
        return self

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        try:
            return re.compile(self.regex or glob_to_regex(self.match or ""), re.IGNORECASE | re.DOTALL)
        except re.error as error:
            raise ValueError(f"regex {self.regex!r}: {error}") from error


class Layout(BaseModel):
    """Raises ConfigError only when it is read; `place` raises Rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: str = ""
    folder: str
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Layout:
        if unknown := (_fields(self.prefix) | _fields(self.folder)) - _ABOUT_JOB:
            raise ValueError(f"prefix and folder: unknown {sorted(unknown)}; there are {sorted(_ABOUT_JOB)}")
        return self

    def place(self, job_id: str, sku: str, keys: Iterable[str]) -> Placement:
        """The target of every key, sorted by target.

        Raises Rejected: `layout_unsafe_name`, `layout_no_rule` (not below the prefix, or no rule matches),
        `layout_collision` (two keys for one target; both are named), `layout_empty`.
        """
        about = {"job_id": _component(job_id), "sku": _component(sku)}
        folder = safe_path(self.folder.format_map(about))
        prefix = self.prefix.format_map(about)
        keys = tuple(keys)
        targets: dict[str, str] = {}
        left_out = []
        for key in keys:
            target = self._target(safe_path(key), prefix, about)
            if target is None:
                left_out.append(key)
            elif not target.startswith(f"{folder}/"):
                raise Rejected(f"{key} -> {target} is not below {folder}", code="layout_unsafe_name")
            else:
                targets[key] = target
        if not targets:
            raise Rejected(f"none of {len(keys)} files is to be delivered", code="layout_empty")
        _require_distinct(targets)
        ordered = tuple(sorted(((target, key) for key, target in targets.items())))
        return Placement(folder, tuple((key, target) for target, key in ordered), tuple(left_out))

    def _target(self, key: str, prefix: str, about: Mapping[str, str]) -> str | None:
        if not key.startswith(prefix):
            raise Rejected(f"{key} is not below {prefix}", code="layout_no_rule")
        path = PurePosixPath(key.removeprefix(prefix))
        values = dict(about, path=str(path), file=path.name, name=path.stem, ext=path.suffix.removeprefix("."))
        values["parent"] = path.parent.name.lower()
        for rule in self.rules:
            if found := rule.pattern.fullmatch(str(path)):
                if rule.target is None:
                    return None
                values |= {name: text or "" for name, text in found.groupdict().items()}
                filled = rule.target.format_map(values)
                return safe_path("/".join(part for part in filled.split("/") if part))
        raise Rejected(f"{key}: no rule of the layout matches", code="layout_no_rule")


@dataclass(frozen=True, slots=True)
class Placement:
    """`folder`: what a delivery replaces. `files`: (key, target). `left_out`: keys that are not delivered."""

    folder: str
    files: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]


def load_layout(settings: Settings) -> Layout:
    """LAYOUT_FILE, or the default. Raises ConfigError."""
    path = Path(settings.layout_file) if settings.layout_file else DEFAULT
    try:
        return Layout.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError("LAYOUT_FILE", f"{path}: {error}", "Write it like the built-in layout.toml") from error


def safe_path(path: str) -> str:
    """`path` itself if it is a relative path that is harmless on any server; else Rejected."""
    problem = None
    if path.startswith("/") or "\\" in path:
        problem = "absolute or with a backslash"
    elif any(part in ("", ".", "..") for part in path.split("/")):
        problem = "with an empty part, '.' or '..'"
    elif any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in path) or _BIDI.search(path):
        problem = "with control characters"
    elif len(path.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.split("/")):
        problem = f"longer than {LONGEST_NAME} bytes a name or {LONGEST_PATH} in all"
    if problem:
        raise Rejected(f"unsafe name, {problem}: {path[:300]!a}", code="layout_unsafe_name")
    return path


def _component(name: str) -> str:
    if "/" in name:
        raise Rejected(f"unsafe name, with a slash: {name!a}", code="layout_unsafe_name")
    return safe_path(name)


def _require_distinct(targets: Mapping[str, str]) -> None:
    """No two targets that a server may take for one (letter case, Unicode forms), no file that is also a folder."""
    taken: dict[str, str] = {}
    folders: dict[str, str] = {}
    for key, target in targets.items():
        name = _folded(target)
        parts = name.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        other = taken.get(name) or folders.get(name) or next((taken[part] for part in above if part in taken), None)
        if other is not None:
            raise Rejected(f"{other} and {key} have one target: {targets[other]}, {target}", code="layout_collision")
        taken[name] = key
        folders.update(dict.fromkeys(above, key))


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\{[^{}]*\}|[^*?{]+|\{")
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def glob_to_regex(glob: str) -> str:
    """A regular expression for a whole path: see the head of layout.toml."""
    parts = []
    for token in _GLOB.findall(glob):
        if token in _WILD:
            parts.append(_WILD[token])
        elif len(token) > 1 and token[0] == "{":
            parts.append("(?:" + "|".join(map(re.escape, token[1:-1].split(","))) + ")")
        else:
            parts.append(re.escape(token))
    return "".join(parts)
