"""Graph-search problems: graphs, their text, the generator protocol, splits on disk."""
