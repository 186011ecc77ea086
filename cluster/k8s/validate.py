"""Manifests in files, checked without a cluster: fields, then the controllers' rules."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from cluster.k8s.pod_rules import between, secret_findings
from cluster.k8s.pods import Document
from cluster.k8s.rules import CLUSTER_AT, ray_findings
from cluster.k8s.schemas import (
    Finding,
    kind_of,
    own_schemas,
    schema_findings,
    unknown_kind,
)
from cluster.k8s.text import load_all
from configs.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Source:
    """One document of a file."""

    file: str
    document: Any

    def title(self) -> str:
        """Such as `FILE: RayJob first`."""
        if not isinstance(self.document, dict):
            return self.file
        metadata = self.document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        known = " ".join(str(part) for part in (self.document.get("kind"), name) if part)
        return f"{self.file}: {known}" if known else self.file


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A finding and the document it is about."""

    source: Source
    finding: Finding

    def line(self) -> str:
        """On one line, for the terminal."""
        at = "" if self.finding.path == "." else f"{self.finding.path}: "
        return f"{self.source.title()}: {at}{self.finding.message}"


def read(paths: Sequence[Path]) -> list[Source]:
    """Every document of the files, and of the YAML files in the folders.

    Raises `ConfigError` where a file cannot be read, is not YAML or holds no document.
    """
    sources: list[Source] = []
    for path in paths:
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        found = [Source(file=str(file), document=item) for file in files for item in _load(file)]
        if not found:
            raise ConfigError(f"{path}: holds no manifest")
        sources += found
    return sources


def check(sources: Sequence[Source], crds: Mapping[str, Document] | None = None) -> list[Mistake]:
    """All mistakes, document by document; `crds`: more schemas, by API version and kind."""
    mistakes: list[Mistake] = []
    are_sound = True
    for source in sources:
        found = list(_fields(source.document, crds or {}))
        if found:
            are_sound = False
        else:  # rules rely on the fields
            found = list(_rules(source.document))
        mistakes += [Mistake(source=source, finding=finding) for finding in found]
    if are_sound:
        mistakes += [
            Mistake(source=sources[index], finding=finding)
            for index, finding in between([source.document for source in sources])
        ]
    return mistakes


def _fields(document: Any, crds: Mapping[str, Document]) -> Iterator[Finding]:
    if not isinstance(document, dict):
        yield Finding(path=".", message=f"is a {type(document).__name__}, not a manifest")
        return
    own, kind = own_schemas(), kind_of(document)
    schemas = [schemas[kind] for schemas in (own, crds) if kind in schemas]
    if not schemas:
        yield unknown_kind(document, [*own, *crds])
    seen: set[str] = set()
    for schema in schemas:  # our own says it better; the CRD adds what ours leaves open
        for finding in schema_findings(document, schema):
            if finding.path not in seen:
                seen.add(finding.path)
                yield finding


def _rules(document: Document) -> Iterator[Finding]:
    if document["kind"] in CLUSTER_AT:
        yield from ray_findings(document)
    elif document["kind"] == "Secret":
        yield from secret_findings(document)


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it, but that a key given twice is an error and dates stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        start: [entry for entry in entries if not entry[0].endswith(":timestamp")]
        for start, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a plain name"
                raise ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                problem = f"{key.value} is given twice"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(file: Path) -> list[Any]:
    documents = load_all(file, _Loader, str(file), "manifests")
    return [document for document in documents if document is not None]
