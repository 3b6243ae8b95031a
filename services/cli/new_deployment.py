"""What is deployed, with one service more: whatever is said of one that is there is said of the new one too."""

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from yaml import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode, YAMLError, compose_all

from common.errors import Invalid

EMPTY = re.compile(r"\s*(#.*)?")


class Deployed:
    """Manifests in which `model` is one of `services`, read for what they say of it alone."""

    def __init__(self, model: str, services: Collection[str]) -> None:
        self.model = model
        names = "|".join(sorted(services))  # tickets.example.org is a host, and may be called what it likes
        self._services = re.compile(rf"(?<![a-z0-9])({names})(?![a-z0-9]|\.example\b)", re.IGNORECASE)

    def names(self, text: str) -> set[str]:
        """The services that are named in a text: in a path, a variable, the name of a secret."""
        return {found.lower() for found in self._services.findall(text)}

    def renamed(self, text: str, name: str) -> str:
        """A text about the model, as one about the service of that name."""
        return self._services.sub(lambda found: name.upper() if found[0].isupper() else name, text)

    def is_its_own(self, path: str) -> bool:
        """Whether a file is the model's own, by its name or that of a folder."""
        return self.model in (part.partition(".")[0] for part in PurePosixPath(path).parts)

    def extended(self, path: str, text: str, name: str) -> str:
        """YAML in which every item of a list, pair of a mapping and document that is about the model alone is followed
        by one about the service of that name, and every pattern `a|b|c` has it that has the model. Raises Invalid.
        """
        try:
            documents = [each for each in compose_all(text) if each is not None]
        except YAMLError as error:
            raise Invalid(f"{path}: {error}. Nothing was changed.") from error
        places: list[tuple[int, str]] = []
        for document in documents:
            if len(documents) > 1 and self._about(document, document) == {self.model}:
                start, end = self._lines(text, document.start_mark.index, document.end_mark.index)
                places.append((end, "\n---\n" + text[start:end]))
            else:
                places += self._copies(text, document)
        for place, copy in sorted(places, reverse=True):
            text = text[:place] + self.renamed(copy, name) + text[place:]
        return self._with_alternatives(text, name)

    def lines(self, text: str, name: str) -> str:
        """Configuration in which that is so of every line that is about the model alone, and of every pattern."""
        told: list[str] = []
        for line in text.split("\n"):
            told += [line, self.renamed(line, name)] if self.names(line) == {self.model} else [line]
        return self._with_alternatives("\n".join(told), name)

    def _with_alternatives(self, text: str, name: str) -> str:
        return text.replace(f"{self.model}|", f"{self.model}|{name}|")

    def _copies(self, text: str, node: Node) -> Iterator[tuple[int, str]]:
        """What is to be inserted, and where."""
        for first, last in children(node):
            told = self._about(node, first)
            if told != {self.model} or not self._about(node, last) <= told:
                if is_within(node, last):
                    yield from self._copies(text, last)
            elif isinstance(node, CollectionNode) and node.flow_style:
                yield last.end_mark.index, f", {text[first.start_mark.index : last.end_mark.index]}"
            else:
                end = last.end_mark.index if is_within(node, last) else first.end_mark.index
                start, end = self._lines(text, first.start_mark.index, end)
                yield end, "\n" + text[start:end]

    def _about(self, parent: Node, node: Node) -> set[str]:
        """The services that are named in a node, but for what it only refers to."""
        if not is_within(parent, node):
            return set()
        if isinstance(node, ScalarNode):
            return self.names(node.value)
        return {name for pair in children(node) for each in pair for name in self._about(node, each)}

    @staticmethod
    def _lines(text: str, start: int, end: int) -> tuple[int, int]:
        """The whole lines of that part of a text, without those at its end that say nothing."""
        begin = text.rfind("\n", 0, start) + 1
        end = len(text[:end].rstrip())
        stop = text.find("\n", end)
        lines = text[begin : stop if stop >= 0 else len(text)].split("\n")
        while len(lines) > 1 and EMPTY.fullmatch(lines[-1]):
            lines.pop()
        return begin, begin + len("\n".join(lines))


def children(node: Node) -> Iterator[tuple[Node, Node]]:
    """Items of a list, each twice, or keys with their values."""
    if isinstance(node, MappingNode):
        yield from node.value
    elif isinstance(node, SequenceNode):
        yield from ((each, each) for each in node.value)


def is_within(parent: Node, node: Node) -> bool:
    """Whether it stands there; what an alias refers to stands elsewhere."""
    return bool(parent.start_mark.index <= node.start_mark.index and node.end_mark.index <= parent.end_mark.index)
