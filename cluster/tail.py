"""Files of JSON lines that others append to, read as they grow."""

import json
import os
from pathlib import Path
from typing import Any


class JsonlTail:
    """What was appended to a file since the last look.

    >>> # tail = JsonlTail(path); rows, is_anew = tail.read()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._inode = 0
        self.num_torn = 0
        """Lines so far that are no JSON object."""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New whole rows; and whether they are all there is, as the file was written anew.

        A line that is being written is left for the next look.
        """
        try:
            with self.path.open("rb") as file:
                is_anew = self._is_anew(file.fileno())
                file.seek(self.position)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            is_anew, self.position, self._inode = self.position > 0, 0, 0
            return [], is_anew
        self.position += len(whole) + len(newline)
        return [row for line in whole.splitlines() if (row := self._row(line))], is_anew

    def _is_anew(self, descriptor: int) -> bool:
        """Whether the file was replaced, or cut, since it was read; begin again then."""
        found = os.fstat(descriptor)
        is_anew = self.position > 0 and (
            found.st_ino != self._inode or found.st_size < self.position
        )
        self._inode = found.st_ino
        if is_anew:
            self.position = self.num_torn = 0
        return is_anew

    def _row(self, line: bytes) -> dict[str, Any] | None:
        try:
            return dict(json.loads(line)) if line.strip() else None
        except (ValueError, TypeError):
            self.num_torn += 1
            return None
