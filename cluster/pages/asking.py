"""What the makers of pages are given."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.pages.library import Library
from cluster.pages.view import RunView

ROLLOUT_FIELDS = (
    "q", "sort", "order", "finish", "engine", "source", "from", "to", "least", "most", "version",
    "prompt", "group", "page",
)  # fmt: skip
"""What the form of the browser of samples holds."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A page of a run that somebody looks at."""

    library: Library
    view: RunView
    query: Mapping[str, str]
    """What the page takes of its address."""

    def word(self, name: str) -> str:
        """A value of the query without spaces around it; empty where it is not given."""
        return self.query.get(name, "").strip()
