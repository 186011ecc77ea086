"""Failures that a run treats in different ways."""


class Unrecoverable(RuntimeError):
    """Trying again from the last checkpoint would fail the same way: the run ends at once."""


class StorageFull(Unrecoverable):
    """A disk has no room left; the message names the folder and what to do."""


class Fenced(RuntimeError):
    """The caller was replaced while it was out of reach; its successor goes on with the run."""


class NotBegun(RuntimeError):
    """The collector was started anew and waits for the learner to begin again."""
