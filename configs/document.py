"""docs/configuration.md from the schema: `python -m configs.document > docs/configuration.md`."""

import sys
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.methods import METHODS
from configs.schema import RunConfig

INTRODUCTION = """\
# Configuration

This page is generated from `configs/schema.py`; write it again with
`python -m configs.document > docs/configuration.md`.

A run is one YAML file with the sections `model`, `data`, `feedback`, `algorithm` and `cluster`.

- Any setting can be given on the command line, over the file's: `section.key=value`.
- A file may begin with `extends: other.yaml` (a path relative to itself) and state what differs.
- `algorithm.name` sets [defaults of its method](#methods); the file and the command line go before.
- Unknown settings and contradictions are refused in one line that names the setting and the remedy;
  nothing is corrected silently.
- A run folder keeps the resolved configuration as `config.yaml`.
"""
KINDS = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


def document() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for names, section in _sections():
        heading = ", ".join(f"`{name}`" for name in names)
        depth = "##" if "." not in names[0] else "###"
        parts.append(f"{depth} {heading}\n\n{_prose(section.__doc__)}\n\n{_table(section)}\n")
    parts.append(_methods())
    return "\n".join(parts)


def _sections() -> Iterator[tuple[list[str], type[BaseModel]]]:
    """Every section after the one that holds it; where one is used twice, under both names."""
    names: dict[type[BaseModel], list[str]] = {}

    def visit(section: type[BaseModel], prefix: str) -> None:
        for name, field in section.model_fields.items():
            inner, is_named = _inner(field.annotation)
            if inner is not None:
                path = f"{prefix}{name}" + (".NAME" if is_named else "")
                names.setdefault(inner, []).append(path)
                visit(inner, f"{path}.")

    visit(RunConfig, "")
    return ((paths, section) for section, paths in names.items())


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a setting holds, if any, and whether it holds several by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    found = [_inner(argument)[0] for argument in get_args(annotation)]
    return next(filter(None, found), None), get_origin(annotation) is dict


def _table(section: type[BaseModel]) -> str:
    if not section.model_fields:
        return "It has no settings of its own: `{}`."
    lines = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        inner, is_named = _inner(field.annotation)
        if inner is None:
            value, meaning = _kind(field.annotation, field.metadata), _prose(field.description)
        else:
            value = "sections by name" if is_named else "section"
            meaning = _prose(field.description) or _prose(inner.__doc__)
        lines.append(f"| `{name}` | {value} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What may be written, such as `whole number > 0 or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        kinds = [_kind(kind) for kind in arguments if kind is not NoneType]
        return " or ".join([*kinds, "`null`"] if NoneType in arguments else kinds)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        count = "any number" if arguments[-1] is Ellipsis else len(arguments)
        return f"list of {count}: {_kind(arguments[0])}"
    if origin is dict:
        return f"{_kind(arguments[1])}, by name"
    return " ".join([KINDS[annotation], " and ".join(_bounds(metadata))]).strip()


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        for name, sign in BOUNDS:
            bound = getattr(item, name, None)
            if bound is not None:
                yield f"{sign} {bound:,}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value == {}:
        return ""
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """On one line, as a YAML file would say it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _methods() -> str:
    """What each `algorithm.name` stands for."""
    lines = [
        "## Methods",
        "",
        "What `algorithm.name` sets in all sections, where it differs from the tables above.",
        "",
        "| `algorithm.name` | what it does | source | defaults |",
        "|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        flat = ", ".join(f"`{key}={_yaml(value)}`" for key, value in _flat(method.settings))
        lines.append(f"| `{name}` | {method.line} | {method.paper} | {flat} |")
    return "\n".join(lines) + "\n"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _prose(text: str | None) -> str:
    """A docstring on one line, safe inside a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
