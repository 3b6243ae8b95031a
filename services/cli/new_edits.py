"""Source files changed where their syntax says: how they are laid out, and what else is in them, does not matter."""

import ast
from collections.abc import Callable, Sequence

from common.errors import Invalid


class NotAsExpected(Invalid):
    """A file is not what whoever changes it was made for; the text says which, and what was looked for."""


class Module:
    """The text of a Python file, changed bit by bit. What is added is not formatted."""

    def __init__(self, path: str, text: str) -> None:
        """Raises NotAsExpected."""
        self.path = path
        self.text = text
        self._tree()

    def add_import(self, line: str) -> None:
        """Behind the last import at the top."""
        imports = [each for each in self._tree().body if isinstance(each, ast.Import | ast.ImportFrom)]
        if not imports:
            raise self._missing("an import")
        self._insert(self._end(imports[-1]), f"\n{line}")

    def add(self, name: str, element: str, *, before: str = "") -> None:
        """An element to the tuple, list, dict or Literal that is called `name`: at its end, or before the first element
        that has the string `before` in it. Raises NotAsExpected.
        """
        elements = self._elements(name)
        if not before:
            self._insert(self._end(elements[-1]), f", {element}")
            return
        found = next((each for each in elements if before in strings_in(each)), None)
        if found is None:
            raise self._missing(f"an element with {before!r} in `{name}`")
        self._insert(self._start(found), f"{element}, ")

    def add_sorted(self, name: str, word: str) -> None:
        """A string to a tuple of strings that is sorted. Raises NotAsExpected."""
        later = [each for each in self.words(name) if each > word]
        self.add(name, repr(word), before=later[0] if later else "")

    def add_lines(self, name: str, lines: Sequence[str], *, before: Callable[[str], bool]) -> None:
        """Lines to the string of lines that is called `name`: before the first such one, or at the end.

        Raises NotAsExpected.
        """
        value = self._value(name)
        if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            raise self._missing(f"`{name}` that is a string")
        start, end = self._start(value), self._end(value)
        first, *there, last = self.text[start:end].split("\n")
        place = next((n for n, each in enumerate(there) if before(each)), len(there))
        self.text = (
            self.text[:start] + "\n".join([first, *there[:place], *lines, *there[place:], last]) + self.text[end:]
        )

    def words(self, name: str) -> list[str]:
        """The strings in what is called `name`. Raises NotAsExpected."""
        return strings_in(self._value(name))

    def _elements(self, name: str) -> Sequence[ast.expr]:
        value = self._value(name)
        if isinstance(value, ast.DictComp):
            value = value.generators[0].iter
        if isinstance(value, ast.Subscript):
            value = value.slice
        elements: Sequence[ast.expr | None] = []
        if isinstance(value, ast.Tuple | ast.List | ast.Set):
            elements = value.elts
        elif isinstance(value, ast.Dict):
            elements = value.values  # behind the last of which a pair can be added
        found = [each for each in elements if each is not None]
        if not found:
            raise self._missing(f"`{name}` that is a tuple, a list, a dict or a Literal, and not empty")
        return found

    def _value(self, name: str) -> ast.expr:
        for statement in self._tree().body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                    return value
                case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                    return value
        raise self._missing(f"`{name} = ...` at the top level")

    def _tree(self) -> ast.Module:
        try:
            return ast.parse(self.text)
        except SyntaxError as error:
            raise NotAsExpected(f"{self.path}, line {error.lineno}: {error.msg}; mend that first.") from error

    def _missing(self, what: str) -> NotAsExpected:
        return NotAsExpected(f"{self.path}: looked for {what}, and there is none. Nothing was changed.")

    def _start(self, node: ast.expr | ast.stmt) -> int:
        return self._offset(node.lineno, node.col_offset)

    def _end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.end_lineno, node.end_col_offset)

    def _offset(self, line: int, column: int) -> int:
        """Where that is in the text; `ast` counts lines from 1, and columns in bytes of UTF-8."""
        lines = self.text.split("\n")
        return sum(len(each) + 1 for each in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())

    def _insert(self, place: int, what: str) -> None:
        self.text = self.text[:place] + what + self.text[place:]


def strings_in(node: ast.AST) -> list[str]:
    """All strings in an expression, in the order of the text."""
    found = [each for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return [str(each.value) for each in sorted(found, key=lambda each: (each.lineno, each.col_offset))]
