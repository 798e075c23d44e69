"""Runs the code of pages and writes beneath each block what it prints.

    python docs/shown.py docs/tour.md docs/faq.md

A block of Python followed by a block of text shows what it prints; a test compares the
two. Blocks of a page run in order, in one namespace. A block under the comment
``<!-- not run: why -->`` is left out.
"""

import contextlib
import io
import pathlib
import re
import sys
from collections.abc import Iterator

BLOCK = re.compile(
    r"(?P<left><!-- not run: .+ -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n^```text\n(?P<shown>.*?)^```\n)?",
    re.DOTALL | re.MULTILINE,
)


def blocks(text: str) -> list[re.Match[str]]:
    """The blocks of a page that run."""
    return [block for block in BLOCK.finditer(text) if not block["left"]]


def run(name: str, text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Runs a page; each block with what it prints."""
    names: dict = {"__name__": f"docs_{name}"}
    for block in blocks(text):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block["code"], f"docs/{name}.md", "exec"), names)
        yield block, "\n".join(map(str.rstrip, printed.getvalue().splitlines()))


def main(pages: list[str]) -> None:
    """Writes the pages anew."""
    for page in map(pathlib.Path, pages):
        text, parts, at = page.read_text(encoding="utf-8"), [], 0
        for block, printed in run(page.stem, text):
            if block["shown"] is None:
                continue
            start, end = block.span("shown")
            parts += [text[at:start], f"{printed}\n"]
            at = end
        page.write_text("".join([*parts, text[at:]]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
