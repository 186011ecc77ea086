"""YAML plus dotted overrides -> a checked, frozen `RunConfig`.

Layers, each over the one before, mapping into mapping: what the method's name stands for
(`configs.methods`), the caller's `base`, the files that a YAML extends, the YAML, the overrides.
"""

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs import strict_yaml
from configs.checks import violations
from configs.errors import ConfigError
from configs.keys import bare, clean, resolve, takes_null, unknown
from configs.kubernetes import PATTERNS
from configs.methods import METHODS
from configs.schema import RunConfig

MEANT = {"gpu": "cuda"}
"""Words for a choice that resemble another one."""

__all__ = ["ConfigError", "load_config", "merge", "to_yaml"]


def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), *, base: dict[str, Any] | None = None
) -> RunConfig:
    """The configuration of a run.

    `path`: a YAML file, which may say `extends: other.yaml` (relative to itself) and state only
    what differs; None where `base` and `overrides` say everything. `overrides`: `section.key=value`
    with YAML values; `null` takes an inherited reward away. `base`: settings below the file's.
    Raises `ConfigError` with one line per mistake.
    """
    settings = _checked(base or {}, "")
    for file, layer in _files(Path(path)) if path is not None else []:
        settings = merge(settings, _checked(layer, f"{file}: "))
    for override in overrides:
        settings = merge(settings, _parse_override(override))
    settings = merge(_method_defaults(settings), settings)
    _drop_removed_rewards(settings)
    config = _validate(settings)
    if errors := violations(config):
        raise ConfigError("\n".join(errors))
    return config


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new mapping with `over` laid upon `under`; mappings merge, anything else is replaced."""
    merged = deepcopy(dict(under))
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = deepcopy(value)
    return merged


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML; `load_config` reads the same configuration from it."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def _files(path: Path, chain: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The file and all that it extends, the most general first."""
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise ConfigError(f"{path}: extends itself ({' -> '.join(p.name for p in (*chain, path))})")
    layer = strict_yaml.read_mapping(path)
    if "extends" not in layer:
        return [(path, layer)]
    parent = layer.pop("extends")
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends is {parent!r}; it should be the name of one YAML file")
    target = path.parent / parent
    if not target.exists():
        raise ConfigError(f"{path}: extends {parent}, but there is no file {target}")
    return [*_files(target, (*chain, path)), (path, layer)]


def _checked(layer: Mapping[Any, Any], source: str) -> dict[str, Any]:
    cleaned, errors = clean(layer, RunConfig)
    if errors:
        raise ConfigError("\n".join(source + error for error in errors))
    return cleaned


def _parse_override(override: str) -> dict[str, Any]:
    """`a.b=value` as `{"a": {"b": value}}`."""
    name, equals, text = override.partition("=")
    names = name.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"{override!r} is not an override; write section.key=value")
    annotation = resolve(names)
    if annotation is None:
        raise ConfigError(unknown(names))
    value: Any = text.strip()
    if value in ("", "~", "null") and not takes_null(names):
        raise ConfigError(
            f"{name.strip()} holds settings and cannot be null; name one of them: "
            f"{name.strip()}.NAME=..."
        )
    # Where text is wanted, text is taken as it is: a prompt may hold a colon, a path be a number.
    is_plain_text = bare(annotation) is str and not value.startswith(("'", '"'))
    if not is_plain_text or value in ("", "~", "null"):
        value = strict_yaml.parse(value, name.strip())
    nested = value
    for key in reversed(names):
        nested = {key: nested}
    return _checked(nested, "")


def _method_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    name = settings.get("algorithm", {}).get("name")
    if name is None:
        raise ConfigError(f"algorithm.name is required; methods are {', '.join(METHODS)}")
    if not isinstance(name, str) or name not in METHODS:
        near = get_close_matches(str(name).lower(), METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"algorithm.name={name} is not a method; {hint}`attune methods` lists them"
        )
    return METHODS[name].settings


def _drop_removed_rewards(settings: dict[str, Any]) -> None:
    rewards = settings.get("feedback", {}).get("rewards")
    if rewards is not None:
        kept = {name: reward for name, reward in rewards.items() if reward is not None}
        settings["feedback"]["rewards"] = kept


def _validate(settings: Mapping[str, Any]) -> RunConfig:
    # A missing section becomes an empty one, so that the error names the setting in it.
    whole = {name: {} for name, field in RunConfig.model_fields.items() if field.is_required()}
    try:
        text = json.dumps(merge(whole, settings))
        # Strict, so that `true` is no number and 32.5 no count; as JSON, so that lists are tuples.
        return RunConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from error


def _explain(error: ErrorDetails) -> str:
    """One line: the setting, its value, what is allowed."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):
        return f"{name} is missing: the list is too short"
    if error["type"] == "missing":
        return f"{name} is required; set it in the YAML or add {name}=..."
    if not name:
        return f"the settings are not valid text: {error['msg']}"
    value = json.dumps(error["input"], ensure_ascii=False)
    shown = value if len(value) <= 60 else value[:57] + "..."
    allowed = error["msg"].replace("Input should ", "it should ").replace("a valid string", "text")
    allowed = allowed.replace("a valid integer", "a whole number").replace("a valid n", "a n")
    hint = ""
    if error["type"] == "string_pattern_mismatch":
        expected = PATTERNS.get(error.get("ctx", {})["pattern"])
        allowed = f"it should be {expected}" if expected else allowed
    if error["type"] == "literal_error":
        expected = error.get("ctx", {})["expected"].replace(" or ", ", ")
        choices = [choice.strip("'") for choice in expected.split(", ")]
        meant = MEANT.get(str(error["input"]), str(error["input"]))
        near = get_close_matches(meant, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    elif error["type"] == "string_type" and error["input"] is not None:
        hint = "; put it in quotes"
    return f"{name} is {shown}; {allowed}{hint}"
