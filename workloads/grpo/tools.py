"""Tools that a model may call in its completions, as TRL runs them; a calculator as an example.

A tool is a function with type hints and a docstring in Google's form: the model sees its name, its
first line and its arguments. An error that it raises is the answer that the model sees.
"""

import ast
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from workloads.errors import UserError

if TYPE_CHECKING:
    from workloads.grpo.config import Tools
    from workloads.grpo.model import Processing

Tool = Callable[..., Any]
_OWN = ("reset", "get_reward")
_LARGEST = 10**12
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.USub: operator.neg,
        ast.UAdd: operator.pos,
    }
)


@dataclass(frozen=True)
class LoadedTools:
    """The tools of a profile, the class of their environment, and their schemas in prompts."""

    functions: Sequence[Tool] = ()
    environment: type[Any] | None = None
    schemas: Sequence[dict[str, Any]] = ()

    def check(self, processing: "Processing") -> None:
        """Check that the chat template can show tool calls, and that TRL can read them back.

        Raises UserError where either fails.
        """
        if not self.schemas:
            return
        from trl.chat_template_utils import add_response_schema, supports_tool_calling

        from workloads.grpo.model import tokenizer_of

        if not supports_tool_calling(processing):
            raise UserError(
                "tools: expected a chat template that shows calls and answers of tools, found one "
                "that does not; choose a model that was taught to call tools, or set "
                "model.chat_template"
            )
        tokenizer = tokenizer_of(processing)
        known = ("response_template", "response_schema")
        if any(getattr(tokenizer, name, None) is not None for name in known):
            return
        try:
            add_response_schema(processing)
        except ValueError as error:
            raise UserError(
                "tools: expected a chat template whose calls can be read back (Qwen, Llama 3 and "
                "others that TRL knows), found another; choose such a model, or give its tokenizer "
                f"a response_template ({str(error).splitlines()[0][:150]})"
            ) from error


def load_tools(wanted: "Tools", is_rewarded: bool = True) -> LoadedTools:
    """The functions and the environment that a profile names.

    is_rewarded: by rewards of the profile; else the environment has to bring its own. Raises
    UserError for what cannot be a tool or an environment.
    """
    if not wanted.used:
        return LoadedTools()
    from workloads.grpo.rewards.plug_ins import find_callable

    functions = [find_callable(spec, "tool") for spec in wanted.functions]
    environment: type[Any] | None = None
    methods: list[Tool] = []
    if wanted.environment is not None:
        found = find_callable(wanted.environment, "environment")
        environment, methods = _environment(wanted.environment, found)
        if not is_rewarded and not callable(getattr(environment, "get_reward", None)):
            raise UserError(
                f'environment "{wanted.environment}": expected a method get_reward, since the '
                "profile has no rewards, found none; add it, or name a reward"
            )
    names = [tool.__name__ for tool in [*functions, *methods]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"tools: {twice[0]!r} is the name of two tools; rename one")
    schemas = [_schema(tool) for tool in [*functions, *methods]]
    return LoadedTools(functions, environment, schemas)


def _environment(spec: str, found: Any) -> tuple[type[Any], list[Tool]]:
    """The class, and the methods of an instance that are tools, as TRL finds them."""
    if not inspect.isclass(found) or not callable(getattr(found, "reset", None)):
        raise UserError(
            f'environment "{spec}": expected a class with a method reset(**row), found '
            f"{found!r}; see docs/grpo.md"
        )
    try:
        instance = found()
    except Exception as error:  # foreign code
        raise UserError(
            f'environment "{spec}": expected to make one without arguments, found '
            f"{type(error).__name__}: {error}; fix the class"
        ) from error
    methods = inspect.getmembers(found, predicate=inspect.isfunction)
    tools = [name for name, _ in methods if name not in _OWN and not name.startswith("_")]
    return found, [getattr(instance, name) for name in tools]


def _schema(tool: Tool) -> dict[str, Any]:
    from transformers.utils import chat_template_utils as known

    try:
        return known.get_json_schema(tool)
    except (known.DocstringParsingException, known.TypeHintParsingException) as error:
        name = getattr(tool, "__name__", str(tool))
        raise UserError(
            f"tool {name}: expected type hints and a docstring with a line for each argument under "
            f"`Args:`, found: {error}"
        ) from error


def calculate(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % and parentheses, such as (3 + 4) * 2.

    Returns:
        The value.
    """
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.AST) -> Any:
    """Value of an expression of bounded numbers, so that none takes long; raises ValueError."""
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("expected a number")
        case ast.Constant(value=int() | float() as found):
            value = found
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            value = _OPERATORS[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            value = _OPERATORS[type(op)](_value(operand))
        case _:
            raise ValueError("expected numbers with + - * / // % and parentheses")
    if abs(value) > _LARGEST:
        raise ValueError(f"expected values up to {_LARGEST:,}")
    return value


__all__ = ["LoadedTools", "calculate", "load_tools"]
