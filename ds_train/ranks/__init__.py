"""Who is which rank, how ranks agree, stop and die. Importing this package loads nothing heavy."""
