"""The name of a sample: `STEP-GROUP-SAMPLE`, such as `12-340-1`."""

import re
from dataclasses import dataclass

from configs.errors import ConfigError

_TEXT = re.compile(r"(\d{1,9})-(\d{1,18})-(\d{1,9})")


@dataclass(frozen=True, kw_only=True, order=True)
class SampleId:
    """Where a sample is: the step that used it, its group, its place in the group.

    Unique in a run, and stable: a group id is leased once, and once its row is in the ledger it is
    never leased again, so that a group belongs to one step; samples are counted inside their group.
    A step that is run again after going back to a checkpoint replaces the samples of that name, as
    it replaces their files and their rows in the ledger. The step is in the name so that one folder
    of many has to be opened.

    >>> str(SampleId.parse("12-340-1")), SampleId.parse("12-340-1").group_id
    ('12-340-1', 340)
    """

    step: int
    group_id: int
    sample: int

    def __str__(self) -> str:
        return f"{self.step}-{self.group_id}-{self.sample}"

    @classmethod
    def parse(cls, text: str) -> "SampleId":
        """Read `STEP-GROUP-SAMPLE`; raises ConfigError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} names no sample; give STEP-GROUP-SAMPLE, such as 12-340-1")
        step, group_id, sample = map(int, match.groups())
        return cls(step=step, group_id=group_id, sample=sample)
