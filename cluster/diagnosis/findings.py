"""What a check answers with."""

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "wrong"]
    """ok; a note, which a run survives; wrong, which stops it."""
    what: str
    remedy: str = ""

    def line(self) -> str:
        """The finding on one line."""
        return f"{self.level:<6} {self.what}" + (f": {self.remedy}" if self.remedy else "")
