"""What `attune methods` prints: the method table, and one row of it by the survey's components.

The list comes from `configs` alone and answers at once. One row shows its loss and its coefficient
too, for which torch is imported.
"""

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError
from configs.methods import METHODS
from configs.schema import OFFLINE

KINDS = (
    "imitation and judges",
    "policy gradients",
    "stored pairs",
    "stored single replies",
    "lists",
    "own replies",
)
STORED = {"given": "stored pairs", "single": "stored single replies", "group": "lists"}
"""Kinds of methods that learn from stored replies, by `data.pairing`."""
PIPE_WIDTH = 160
"""Columns where no terminal says how many there are: whole lines, for `grep`."""


def listing() -> list[dict[str, str]]:
    """All rows of the table, kind by kind."""
    rows = [
        {"name": name, "kind": kind(name), "line": method.line, "paper": method.paper}
        for name, method in METHODS.items()
    ]
    return sorted(rows, key=lambda row: KINDS.index(row["kind"]))


def kind(name: str) -> str:
    """Under which of `KINDS` a method is listed."""
    method = METHODS[name]
    if name in OFFLINE or method.algorithm.get("advantage") == "top1":
        return "imitation and judges"
    if "loss" not in method.algorithm:
        return "policy gradients"
    data = method.data or {}
    return STORED[data["pairing"]] if data["source"] == "stored" else "own replies"


def description(name: str) -> dict[str, Any]:
    """One row: what it sets, its loss, its coefficient. Raises `ConfigError` for another name."""
    if name not in METHODS:
        near = get_close_matches(name.lower().replace("-", "_"), METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"{name} is not a method; {hint}`attune methods` lists them")
    method = METHODS[name]
    return {
        "name": name,
        "kind": kind(name),
        "line": method.line,
        "paper": method.paper,
        **method.settings,
        "arities": list(method.arities),
        "loss": _loss(name),
        "coefficient": _coefficient(name),
    }


def print_list() -> None:
    """One line for each method, however narrow the terminal; the paper by its number."""
    rows = [(row["kind"], row["name"], row["line"], _number(row["paper"])) for row in listing()]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()  # the only one that gives way, to a narrow terminal
    table.add_column(no_wrap=True, style="dim")
    for group, members in groupby(rows, key=itemgetter(0)):
        if table.rows:
            table.add_row()
        table.add_row(Text(group, style="bold"))
        for _, name, line, paper in members:
            table.add_row(name, Text(line, no_wrap=True, overflow="ellipsis"), paper)
    console().print(table)


def print_description(name: str) -> None:
    """One row as headings and what they say."""
    told = description(name)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    table.add_row(name, told["line"])
    table.add_row("", told["paper"])
    for section in ("model", "data", "feedback", "algorithm"):
        if section in told:
            table.add_row(section, "  ".join(_flat(told[section])))
    if told["arities"]:
        table.add_row("arity", " or ".join(told["arities"]))
    table.add_row("loss", told["loss"]["function"])
    table.add_row("", told["loss"]["summary"])
    if told["coefficient"]:
        table.add_row("coefficient", told["coefficient"]["text"])
        for letter, meaning in told["coefficient"]["symbols"].items():
            table.add_row("", Text(set_cell_size(letter, 5) + meaning, style="dim"))
    console().print(table)


def _number(paper: str) -> str:
    """The (first) arXiv number of a paper, else its authors."""
    number = re.search(r"\d{4}\.\d{5}", paper)
    return number.group() if number else paper


def console() -> Console:
    """Of stdout as it is now; brackets in formulas are no markup."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if has_width else PIPE_WIDTH, markup=False, highlight=False)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`name=value`, as an override would say it."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={value if isinstance(value, str) else json.dumps(value)}"


def _loss(name: str) -> dict[str, str]:
    """Where the loss of a method is written, and what it says of itself first."""
    from rl.losses.policy import policy_objective
    from rl.losses.supervised import nll, pair_loss
    from rl.methods import preference_loss

    loss = METHODS[name].algorithm.get("loss")
    if loss:
        function = preference_loss(loss["name"]).function
    else:
        function = {"sft": nll, "reward_model": pair_loss}.get(name, policy_objective)
    paragraph = (inspect.getdoc(function) or "").split("\n\n")[0]
    return {
        "function": f"{function.__module__}.{function.__name__}",
        "summary": " ".join(paragraph.split()),
    }


def _coefficient(name: str) -> dict[str, Any] | None:
    """The formula and its letters; None for a method of the user's own that has none."""
    from rl.coefficients import coefficient, symbols

    try:
        text = coefficient(name).text
    except KeyError:
        return None
    return {"text": text, "symbols": symbols(text)}
