"""The ground of every command: messages, parsing, files, processes, random numbers."""
