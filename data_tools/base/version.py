"""The version of both packages. setup.cfg reads it from here, without an import."""

VERSION = "0.1.0"
SHOWN = f"ds-train {VERSION}"  # what --version prints
