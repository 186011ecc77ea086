"""The loss families: per-token or per-row losses, and the sums their metrics come from."""
