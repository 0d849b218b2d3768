"""What every command builds on: messages, parsing, files, processes, random numbers."""
