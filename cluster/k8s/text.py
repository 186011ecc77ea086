"""YAML text that kubectl, whose YAML is the older 1.1, reads as it was meant."""

import re
from collections.abc import Iterable
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes lists and mappings out, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
# PyYAML takes 1e3 and 0o17 for text and leaves them bare; kubectl takes them for numbers.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$|0o[0-7]+$"),
    list("-+0123456789"),
)


def dump(document: Any) -> str:
    """One document as text."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def dump_all(documents: Iterable[Any]) -> str:
    """Several documents as one text."""
    return "---\n".join(dump(document) for document in documents)
