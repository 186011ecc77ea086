"""The checks of `attune doctor`, one family in each file."""
