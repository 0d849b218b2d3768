"""What runs left behind: their logs and settings, as numbers and as pictures."""
