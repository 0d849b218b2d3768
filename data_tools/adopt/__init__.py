"""``python -m data_tools.adopt``: data and checkpoints of other programs come into our layout; see `__main__`."""
