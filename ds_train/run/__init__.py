"""From checked flags to a run."""
