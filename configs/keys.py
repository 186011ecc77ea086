"""Names of settings: which exist, which is meant by one that does not."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from configs.schema import RunConfig

ELSEWHERE = {
    "lr": "algorithm.optimizer.learning_rate",
    "beta": "algorithm.kl.coef",
    "kl_coef": "algorithm.kl.coef",
    "batch_size": "data.prompts_per_step",
    "group_size": "data.samples_per_prompt",
    "num_generations": "data.samples_per_prompt",
    "epochs": "algorithm.num_epochs",
    "max_steps": "algorithm.num_steps",
    "output_dir": "cluster.run_dir",
}
"""Names that other trainers use, and what they are called here."""


def bare(annotation: Any) -> Any:
    """The annotation without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return bare(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def is_section(annotation: Any) -> bool:
    """Whether values are mappings of settings with fixed names."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def holds_settings(annotation: Any) -> bool:
    """Whether values are mappings: a section, or entries by name."""
    inner = bare(annotation)
    return is_section(inner) or get_origin(inner) is dict


def is_nullable(annotation: Any) -> bool:
    """Whether null is among the values."""
    return type(None) in get_args(annotation)


def takes_null(names: Sequence[str]) -> bool:
    """Whether null says something of the setting at a dotted path; not of a section."""
    annotation, parent = resolve(names), bare(resolve(names[:-1]))
    return not holds_settings(annotation) or is_nullable(annotation) or get_origin(parent) is dict


def members(node: Any) -> dict[str, Any]:
    """The settings of a section, name -> annotation; none for anything else."""
    node = bare(node)
    if not is_section(node):
        return {}
    return {name: field.annotation for name, field in node.model_fields.items()}


def child(node: Any, name: str) -> Any:
    """Annotation of `name` inside `node`; None where there is no such setting."""
    node = bare(node)
    if get_origin(node) is dict:  # named entries, such as rewards: any name
        return get_args(node)[1]
    return members(node).get(name)


def resolve(names: Sequence[str], node: Any = RunConfig) -> Any:
    """Annotation of the setting at a dotted path; None where there is none."""
    for name in names:
        node = child(node, name)
        if node is None:
            return None
    return node


def every_name(node: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """All dotted names, sections included; entries of named mappings are left out."""
    for name, annotation in members(node).items():
        yield prefix + name
        yield from every_name(annotation, f"{prefix}{name}.")


def unknown(names: Sequence[str]) -> str:
    """One line for a dotted path that does not exist, with the nearest one that does."""
    known = next(i for i in range(len(names)) if resolve(names[: i + 1]) is None)
    parent, wrong, rest = list(names[:known]), names[known], list(names[known + 1 :])
    line = f"{'.'.join(names)} is not a setting"
    siblings = members(resolve(parent))
    moved = [n for n in every_name() if n.rpartition(".")[2] == names[-1]]
    inside = [n for n in moved if n.startswith(".".join(parent))]
    if not siblings and parent:  # something below a plain value
        return f"{line}; {'.'.join(parent)} takes a plain value"
    near = get_close_matches(wrong, siblings, n=1) or [s for s in siblings if s.startswith(wrong)]
    if names[-1] in ELSEWHERE:
        meant = ELSEWHERE[names[-1]]
    elif near:
        whole = [*parent, near[0], *rest]
        meant = ".".join(whole if resolve(whole) is not None else [*parent, near[0]])
    elif moved:
        meant = (inside or moved)[0]
    else:
        here = ".".join(parent)
        return f"{line}; {f'{here} has' if here else 'there are'} {', '.join(siblings)}"
    return f"{line}; did you mean {meant}?"


def clean(layer: Mapping[Any, Any], node: Any, at: Sequence[str] = ()) -> tuple[Any, list[str]]:
    """A layer of settings with every name checked, and one line per name that is wrong.

    A section that is written down empty (`feedback:`) is an empty mapping, not a null.
    """
    cleaned: dict[str, Any] = {}
    errors: list[str] = []
    takes_any_name = get_origin(node) is dict and not is_section(bare(get_args(node)[1]))
    for key, value in layer.items():
        names = [*at, str(key)]
        if "." in str(key) and not takes_any_name:  # node labels have dots
            errors.append(f"{'.'.join(names)}: dotted names are for the command line; nest it here")
            continue
        annotation = child(node, str(key))
        if annotation is None:
            errors.append(unknown(names))
            continue
        inner = bare(annotation)
        is_mapping = holds_settings(annotation)
        optional = is_nullable(annotation) or get_origin(bare(node)) is dict
        if is_mapping and value is None and not optional:
            value = {}
        if is_mapping and isinstance(value, Mapping):
            value, more = clean(value, inner, names)
            errors += more
        elif is_mapping and value is not None:
            errors.append(f"{'.'.join(names)} is {value!r}; it should be a mapping of settings")
        cleaned[str(key)] = value
    return cleaned, errors
