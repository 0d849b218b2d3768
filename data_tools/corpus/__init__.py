"""From documents to packed blocks of tokens."""
