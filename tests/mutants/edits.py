"""Slips that a hand could make in one line of a module, as edits of its text."""

import ast
import copy
import dataclasses
from collections.abc import Iterator

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
_WORDING = {"__repr__", "__str__", "__format__"}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One slip.

    Attributes:
      kind: what is changed, in a few words.
      start: line (from 1) and byte of the line where the replaced text begins.
      end: where it ends.
      text: what stands there instead.
      lines: first and last line of the statement, without the statements inside of it
        (of a function with them): a test that runs one of them can notice.
      inside: whether it belongs to a function, and not to what only an import runs.
    """

    kind: str
    start: tuple[int, int]
    end: tuple[int, int]
    text: str
    lines: tuple[int, int]
    inside: bool

    def apply(self, source: str) -> str:
        """The text of the module with the slip."""
        lines = source.encode().splitlines(keepends=True)
        (first, left), (last, right) = self.start, self.end
        changed = lines[first - 1][:left] + self.text.encode() + lines[last - 1][right:]
        return b"".join([*lines[: first - 1], changed, *lines[last:]]).decode()


def edits(source: str) -> list[Edit]:
    """All slips in a module that are thought of here, by their lines.

    Left out are docstrings, annotations, what an error or a warning says, and how a
    value prints.

    >>> [edit.text for edit in edits("def f(a: int = 1):\\n    return a < 2\\n")]
    ['(2)', 'return None', '(a <= 2)', '(3)']
    """
    tree = ast.parse(source)
    return sorted(_statements(tree.body, False), key=lambda edit: edit.start)


def _statements(body: list[ast.stmt], inside: bool) -> Iterator[Edit]:
    for statement in body:
        if isinstance(statement, _FUNCTIONS) and statement.name in _WORDING:
            continue
        blocks = [
            b
            for name in ("body", "orelse", "finalbody")
            if (b := getattr(statement, name, None))
        ]
        blocks += [h.body for h in getattr(statement, "handlers", ())]
        blocks += [case.body for case in getattr(statement, "cases", ())]
        within = inside or isinstance(statement, _FUNCTIONS)
        last = statement.end_lineno or statement.lineno
        if blocks and not isinstance(statement, _FUNCTIONS):
            last = max(blocks[0][0].lineno - 1, statement.lineno)
        lines = (statement.lineno, last)
        for kind, node, text in _slips(statement):
            start = (node.lineno, node.col_offset)
            end = (node.end_lineno or 0, node.end_col_offset or 0)
            yield Edit(kind, start, end, text, lines, within)
        for block in blocks:
            yield from _statements(block, within)


def _slips(statement: ast.stmt) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    """(kind, node, its new text) of one statement, without those inside of it."""
    match statement:
        case ast.Expr(ast.Constant()) | ast.Import() | ast.ImportFrom():
            return  # a docstring
        case ast.Raise() | ast.Expr(ast.Call()):
            yield "statement deleted", statement, "pass"
            if isinstance(statement, ast.Raise) or "warn" in ast.unparse(statement):
                return
        case ast.AugAssign() | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "statement deleted", statement, "pass"
        case ast.Return(ast.expr() as value):
            if not (isinstance(value, ast.Constant) and value.value is None):
                yield "return None", statement, "return None"
        case ast.Continue():
            yield "continue", statement, "break"
        case ast.Break():
            yield "break", statement, "continue"
    if isinstance(statement, ast.If):
        yield "if", statement.test, "True"
        yield "if", statement.test, "False"
    for name, value in ast.iter_fields(statement):
        if name in ("annotation", "returns", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.expr | ast.arguments | ast.keyword | ast.withitem):
                for child in _expressions(node):
                    for kind, new in _changed(child):
                        # The order of names in a decorator means nothing.
                        if (kind, name) != ("arguments swapped", "decorator_list"):
                            yield kind, child, f"({new})"


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions within, but for annotations and the parts of f-strings."""
    if isinstance(node, ast.expr) and not isinstance(node, ast.Starred):
        yield node
    if isinstance(node, ast.JoinedStr):  # no positions in Python 3.11
        return
    for name, value in ast.iter_fields(node):
        if name != "annotation":
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _expressions(child)


def _changed(node: ast.expr) -> Iterator[tuple[str, str]]:
    """(kind, new text) for an expression itself, not for what is within."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare():
            for index, operator in enumerate(new.ops):
                new.ops[index] = _COMPARISONS[type(operator)]()
                yield "comparison", ast.unparse(new)
                new.ops[index] = operator
        case ast.BinOp() if type(new.op) in _OPERATORS:
            new.op = _OPERATORS[type(new.op)]()
            yield "operator", ast.unparse(new)
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
            yield "and, or", ast.unparse(new)
        case ast.UnaryOp(ast.Not() | ast.USub()):
            yield "not or minus dropped", ast.unparse(new.operand)
        case ast.Constant(bool()):
            yield "constant", repr(not new.value)
        case ast.Constant(int() | float()):
            yield "constant", repr(new.value + 1)
        case ast.IfExp():
            yield "if", ast.unparse(new.body)
            yield "if", ast.unparse(new.orelse)
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            for generator in new.generators:
                if generator.ifs:
                    generator.ifs, kept = [], generator.ifs
                    yield "filter dropped", _bare(ast.unparse(new))
                    generator.ifs = kept
        case ast.Call(ast.Name(name)) if name in _NAMES:
            new.func = ast.Name(_NAMES[name])
            yield "min, max, any, all", ast.unparse(new)
        case ast.Call():
            yield from _arguments(new)


def _bare(text: str) -> str:
    """Without the brackets of a generator: the edit brings its own."""
    return text[1:-1] if text.startswith("(") else text


def _arguments(call: ast.Call) -> Iterator[tuple[str, str]]:
    for given in (call.args, call.keywords):
        for index in range(len(given)):
            one = given.pop(index)
            yield "argument dropped", ast.unparse(call)
            given.insert(index, one)
    for index in range(len(call.args) - 1):
        pair = call.args[index : index + 2]
        if not any(isinstance(arg, ast.Starred) for arg in pair):
            call.args[index : index + 2] = pair[::-1]
            yield "arguments swapped", ast.unparse(call)
            call.args[index : index + 2] = pair
