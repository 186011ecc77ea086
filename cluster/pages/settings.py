"""The configuration of a run, and how it differs from another's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.pages.asking import Ask
from cluster.pages.run_files import config_of


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting that two runs do not share."""

    name: str
    there: str | None
    """Of the other run; None where it has no such setting."""
    here: str | None


def values(ask: Ask) -> dict[str, Any]:
    """What the template shows; inside `view.opened()`."""
    view = ask.view
    others = [run for run in ask.library.runs() if run.path != view.path]
    other = next((run for run in others if run.slug == ask.word("with")), None)
    return {
        "text": view.config_text,
        "config_notes": [note for note in view.record.notes if note.startswith("config.yaml")],
        "others": others,
        "other": other,
        "differences": differences(config_of(other.path), view.config) if other else [],
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    """By dotted name, in the order of `here`; what only the other run has comes last."""
    one, two = dict(flat(there)), dict(flat(here))
    names = [*two, *(name for name in one if name not in two)]
    return [
        Difference(name=name, there=one.get(name), here=two.get(name))
        for name in names
        if one.get(name) != two.get(name)
    ]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of all settings, as YAML writes them; a list counts as one value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    elif name:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
        yield name, text.removesuffix("\n").removesuffix("\n...")
