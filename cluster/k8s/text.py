"""YAML text that kubectl, whose YAML is the older 1.1, reads as it was meant."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError


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


def load_all(file: Path, loader: Any, name: str, what: str) -> list[Any]:
    """All documents of a file, which should hold `what`; a `ConfigError` begins with `name`."""
    try:
        return list(yaml.load_all(file.read_text(encoding="utf-8"), Loader=loader))
    except OSError as error:
        raise ConfigError(
            f"{name}: cannot be read ({error.strerror}); give a file or a folder of {what}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is no text; give {what} in YAML") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error
