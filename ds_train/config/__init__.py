"""Flags and the DeepSpeed JSON, checked and resolved into one configuration."""
