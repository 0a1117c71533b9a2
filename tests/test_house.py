"""The package keeps to the public API of other libraries and catches what it expects."""

import ast
from pathlib import Path

import pytest

import thawline

MAX_PRIVATE_USES = 8  # attributes of others that begin with one underscore
MAX_BROAD_EXCEPTS = 4
MAX_PATCHES = 0  # assignments to attributes of what is imported from other packages
SETTINGS = {  # that these packages document as attributes to set
    "ray.data.DataContext.get_current().enable_progress_bars",
    "torch.backends.cuda.matmul.allow_tf32",
    "torch.backends.cudnn.allow_tf32",
}
PACKAGE = Path(thawline.__file__).parent
TREES = {
    file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted(PACKAGE.rglob("*.py"))
}


def private_uses(tree: ast.Module) -> list[str]:
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]


def broad_excepts(tree: ast.Module) -> list[str]:
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [
        f"line {handler.lineno}"
        for handler in handlers
        if handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
    ]


def patches(tree: ast.Module) -> list[str]:
    """Return the assignments to attributes of what a module imports from other packages."""
    imported = {
        (name.asname or name.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not (getattr(node, "module", None) or "").startswith("thawline")
        for name in node.names
    }
    targets = [
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    ]
    return [t for t in targets if t.partition(".")[0] in imported and t not in SETTINGS]


@pytest.mark.parametrize(
    ("find", "limit"),
    [(private_uses, MAX_PRIVATE_USES), (broad_excepts, MAX_BROAD_EXCEPTS), (patches, MAX_PATCHES)],
)
def test_other_libraries_are_used_as_they_are_meant(find, limit: int) -> None:
    found = {file: uses for file, tree in TREES.items() if (uses := find(tree))}
    assert sum(map(len, found.values())) <= limit, found


@pytest.mark.parametrize(
    ("find", "code", "count"),
    [
        (private_uses, "a._b\nself._c\na.__d__", 1),
        (broad_excepts, "try: ...\nexcept Exception: ...\nexcept ValueError: ...", 1),
        (broad_excepts, "try: ...\nexcept: ...", 1),
        (patches, "import a\na.b = 1", 1),
        (patches, "from a import B\nB.c.d = 1", 1),
        (patches, "b = object()\nb.c = 1", 0),
    ],
)
def test_what_is_not_meant_is_found(find, code: str, count: int) -> None:
    assert len(find(ast.parse(code))) == count
