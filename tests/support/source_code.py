"""The modules of both packages, as text and as syntax trees."""

import ast

from tests.support.paths import REPOSITORY

PACKAGES = ("data_tools", "ds_train")


def _name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


SOURCES = {
    _name(str(path.relative_to(REPOSITORY))): path.read_text()
    for package in PACKAGES
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}
MODULES = {module: ast.parse(source) for module, source in SOURCES.items()}


def imported_names(tree: ast.AST) -> set[str]:
    """Modules a tree imports, at its top and inside functions, with the names that may be modules themselves."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
