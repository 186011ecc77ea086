"""YAML for settings: a safe subset in which nothing changes its meaning in silence.

Against YAML 1.1 as PyYAML reads it: `1e-6` is a number, `yes`, `010`, `1:30` and `2026-01-01` are
text, a key may appear once, and there are neither tags for other types nor aliases (which can make
a short file endless).
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from configs.errors import ConfigError

_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*)(\.[0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
)
"""Type, pattern of an unquoted value, and the characters such a value starts with."""


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, starts in _PLAIN:
        entry = (f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"))
        for start in starts:
            table.setdefault("" if start == "\0" else start, []).append(entry)
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()
    yaml_constructors = {  # noqa: RUF012 - PyYAML's own class attribute
        tag: build
        for tag, build in yaml.SafeLoader.yaml_constructors.items()
        if tag is None
        or tag.rpartition(":")[2] in ("bool", "int", "float", "null", "str", "seq", "map")
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"alias *{event.anchor}: write the value out"
            raise ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a plain name"
                raise ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                problem = f"{key.value} was already given on line {seen[key.value]}; keep one"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse(text: str | bytes, source: str) -> Any:
    """The value that `text` holds; a `ConfigError` names `source` and the line otherwise."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    except ValueError as error:  # Python refuses integers of thousands of digits
        raise ConfigError(f"{source}: a number has too many digits") from error


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping at the top of a YAML file; a `ConfigError` names the file otherwise."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the YAML of a run, or its folder") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text; give a YAML file in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    value = parse(content, str(path))
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ConfigError(
            f"{path}: holds {found}; expected sections such as `model:` and `data:` with settings"
        )
    return value


def dump(value: Any) -> str:
    """YAML text that `parse` turns into `value` again."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
