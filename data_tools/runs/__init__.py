"""Reads the logs and settings of runs, and shows them as numbers and pictures."""
