"""Documents against schemas: the project's own of the fields it uses, and CRDs where given."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from cluster.k8s.pods import Document

OWN = Path(__file__).parent / "schema.yaml"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One mistake: where in the document, and what is wrong with it."""

    path: str
    """Such as `spec.workerGroupSpecs[1].minReplicas`."""
    message: str


def kind_of(document: Document) -> str:
    """API version and kind, as in `ray.io/v1 RayJob`."""
    return f"{document.get('apiVersion', '')} {document.get('kind', '')}".strip()


@cache
def own_schemas() -> dict[str, Document]:
    """The project's schema of each kind that it makes, by `kind_of`."""
    content = yaml.safe_load(OWN.read_text())
    definitions = _closed(content["$defs"])
    envelope = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    schemas = {kind: _closed(schema) for kind, schema in content["kinds"].items()}
    return {
        kind: schema
        | {"properties": envelope | schema["properties"], "type": "object", "$defs": definitions}
        for kind, schema in schemas.items()
    }


def schema_findings(document: Document, schema: Document) -> list[Finding]:
    """What a schema says against a document; an unknown field with the one that was meant."""
    errors = Draft202012Validator(schema).iter_errors(document)
    return [finding for error in errors for finding in _findings(error)]


def unknown_kind(document: Document, known: list[str]) -> Finding:
    """For a document that no schema is for."""
    name = kind_of(document)
    if not document.get("kind") or not document.get("apiVersion"):
        return Finding(path="kind", message="a manifest needs apiVersion and kind")
    near = get_close_matches(name, known, n=1)
    same = [other for other in known if other.endswith(f" {document['kind']}")]
    hint = f"did you mean {(same or near)[0]}?" if same or near else "give its CRD with --crds"
    return Finding(path="kind", message=f"{name} is not a kind that is known here; {hint}")


def dotted(path: Any) -> str:
    """A path of keys and indexes as text."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "."


def _closed(node: Any) -> Any:
    """A schema with `names` spelled out and every mapping with known fields closed to others."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    is_mapping = isinstance(node.get("properties"), dict) or isinstance(node.get("names"), list)
    closed = {
        key: _closed(value) for key, value in node.items() if not (is_mapping and key == "names")
    }
    if is_mapping:
        loose = {name: {} for name in node.get("names", [])}
        closed["properties"] = loose | closed.get("properties", {})
        closed.setdefault("additionalProperties", False)
    return closed


def _findings(error: ValidationError) -> Iterator[Finding]:
    path = list(error.absolute_path)
    schema: Any = error.schema
    instance: Any = error.instance
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = list(schema["properties"])
        for name in sorted(set(map(str, instance)) - set(known)):
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            yield Finding(path=dotted([*path, name]), message=f"unknown field; {hint}")
        return
    yield Finding(path=dotted(path), message=_message(error, schema))


def _message(error: ValidationError, schema: Any) -> str:
    value, shown = error.instance, _shown(error.instance)
    if error.validator == "required":
        missing = error.message.split("'")[1]
        return f"{missing} is missing"
    if error.validator == "type":
        wanted = schema["type"]
        wanted = wanted if isinstance(wanted, str) else " or ".join(wanted)
        is_bare = wanted == "string" and not isinstance(value, dict | list)
        remedy = f': write "{value}" in quotes' if is_bare else ""
        return f"is {shown}, not {'an' if wanted[0] in 'aio' else 'a'} {wanted}{remedy}"
    if error.validator == "enum":
        choices = [str(choice) for choice in schema["enum"]]
        near = get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(choices)}"
        return f"is {shown}; {hint}"
    if error.validator == "pattern":
        return f"is {shown}, which does not have the form {schema['pattern']}"
    return error.message if len(error.message) < 200 else f"breaks the rule {error.validator}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__} {text[:40]}…"
