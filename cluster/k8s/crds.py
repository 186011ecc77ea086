"""CustomResourceDefinitions from files, as schemas for offline checks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.k8s.pods import Document
from cluster.k8s.text import load_all
from configs.errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""CRDs are a megabyte each; PyYAML's own parser needs 10 s for one."""


def crd_schemas(path: Path) -> dict[str, Document]:
    """The schema of every served version in a file or a folder of them, by API version and kind.

    Raises `ConfigError` where there is no file or nothing in it defines a kind.
    """
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    schemas: dict[str, Document] = {}
    for file in files:
        for document in load_all(file, _Loader, f"--crds {file}", "CRDs"):
            try:
                schemas |= dict(_versions(document))
            except (KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"--crds {file}: a CustomResourceDefinition in it is not whole; give it as the "
                    "cluster has it"
                ) from error
    if not schemas:
        raise ConfigError(f"--crds {path}: holds no CustomResourceDefinition")
    return schemas


def _versions(document: Any) -> Iterator[tuple[str, Document]]:
    if not isinstance(document, dict) or document.get("kind") != "CustomResourceDefinition":
        return
    spec = document["spec"]
    for version in spec["versions"]:
        if version.get("served"):
            name = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
            yield name, _json_schema(version["schema"]["openAPIV3Schema"])


def _json_schema(node: Any) -> Any:
    """OpenAPI v3 as Kubernetes means it, in the words of JSON Schema."""
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {
        key: {name: _json_schema(inner) for name, inner in value.items()}
        if key == "properties"
        else _json_schema(value)
        for key, value in node.items()
        if key != "default"
    }
    if schema.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    fields = schema.get("properties")
    if isinstance(fields, dict):
        # The API server drops unknown fields in silence; here they are mistakes.
        is_open = schema.get("x-kubernetes-preserve-unknown-fields")
        if not is_open:
            schema.setdefault("additionalProperties", False)
        # "Required" fields with a default are filled in before the check.
        defaults = {name for name, inner in node["properties"].items() if "default" in inner}
        if "required" in schema:
            schema["required"] = [name for name in schema["required"] if name not in defaults]
    return schema
