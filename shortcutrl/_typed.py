"""`typed` checks arguments at each call, and says in one line what is wrong."""

import inspect
import reprlib
import types
import typing
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jax.core import Tracer
from jaxtyping import PRNGKeyArray, TypeCheckError, jaxtyped

T = TypeVar("T", bound=Callable[..., Any])
CONF = BeartypeConf(is_pep484_tower=True)  # an integer is a `float`


def typed(function: T) -> T:
    """Check the shapes, dtypes and kinds of arguments at each call; under `jit`, only while tracing.

    Decorates a function, a constructor, or a dataclass. The error names the argument, its value and the remedy in its
    first line: a `ValueError` for an unknown name among known ones, otherwise a `TypeError`.
    """
    if isinstance(function, type):
        function.__init__ = typed(function.__init__)
        return typing.cast(T, function)
    checked = jaxtyped(function, typechecker=beartype(conf=CONF))
    signature = inspect.signature(function)
    explain = partial(_explain, function, signature)

    @wraps(function)
    def call(*args, **kwargs):
        try:
            if any(map(_is_suspect, (*args, *kwargs.values()))) and (error := explain(args, kwargs)):
                raise error
            return checked(*args, **kwargs)
        except TypeCheckError:
            if (error := explain(args, kwargs)) is None:
                raise
        except TypeError:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as mismatch:
                name = function.__qualname__.removesuffix(".__init__")
                error = TypeError(f"`{name}`: {mismatch}. Its arguments are {_listed(signature)}.")
            else:
                raise
        raise error

    return typing.cast(T, call)


def _listed(signature: inspect.Signature) -> str:
    """Its parameters, where `*` stands before those that are passed by name, without types and defaults."""
    empty = inspect.Parameter.empty
    plain = [each.replace(annotation=empty, default=empty) for each in signature.parameters.values()]
    return str(inspect.Signature([each for each in plain if each.name != "self"]))


def _is_suspect(value: Any) -> bool:
    """Whether a value is an instance of `int`, `np.integer` or `np.ndarray`, but not a number or numbers."""
    if type(value) is int:
        return value.bit_length() > 127  # no float32 holds it
    return isinstance(value, bool | np.timedelta64 | np.ma.MaskedArray)


def _fits(value: Any, hint: Any) -> bool:
    parts = _parts(hint)
    asked_for = Any in parts or (isinstance(value, bool) and bool in parts)
    return (asked_for or not _is_suspect(value)) and is_bearable(value, hint, conf=CONF)


def _explain(function: Callable[..., Any], signature: inspect.Signature, args, kwargs) -> Exception | None:
    """What is wrong with the first argument that is not of its type, or `None` if all are."""
    made = _class_name(type(args[0])) if function.__name__ == "__init__" else None
    given = {
        name: (signature.parameters[name].annotation, value)
        for name, value in signature.bind(*args, **kwargs).arguments.items()
        if signature.parameters[name].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }
    with jaxtyped("context"):
        for name, (hint, value) in given.items():
            if hint is inspect.Parameter.empty or _fits(value, hint):
                continue
            kind = ValueError if isinstance(value, str) and _literals(hint) else TypeError
            remedy = _remedy(name, hint, value, given, made)
            return kind(f"`{name}` must be {_describe(hint)}, got {show(value)}. {remedy}")
    return None


def show(value: Any) -> str:
    """A value in a few words: an array by its dtype and shape, anything else by its shortened `repr`."""
    if isinstance(value, np.ma.MaskedArray):
        return f"a masked array of {value.dtype}{list(value.shape)}"
    if is_key(value):
        return f"random keys of shape {value.shape}" if value.shape else "a random key"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        traced = "a traced " if isinstance(value, Tracer) else ""
        return f"{traced}{value.dtype}{list(value.shape)}" if value.shape or traced else f"{value} ({value.dtype})"
    if type(value).__name__ in _OF_ALGORITHMS:
        return f"a `{_class_name(type(value))}`"
    if callable(value) and hasattr(value, "__name__"):
        return f"the {'class' if isinstance(value, type) else 'function'} `{value.__name__}`"
    if isinstance(value, int) and value.bit_length() > 127:
        return f"an integer of {value.bit_length()} bits"
    try:
        return " ".join(reprlib.repr(value).split())
    except Exception:  # a `repr` of the user's own
        return f"a value of type {type(value).__name__}"


_OF_ALGORITHMS = {"Config", "Draws", "Networks", "State"}
"""Names of classes that each algorithm has."""


def _class_name(kind: type) -> str:
    module = kind.__module__.rpartition(".")[2]
    return f"{module}.{kind.__name__}" if kind.__name__ in _OF_ALGORITHMS else kind.__name__


def is_key(value: Any) -> bool:
    return isinstance(value, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _parts(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [part for member in typing.get_args(hint) for part in _parts(member)] if union else [hint]


def _literals(hint: Any) -> list[Any]:
    return [arg for part in _parts(hint) if typing.get_origin(part) is Literal for arg in typing.get_args(part)]


def _shapes(hint: Any) -> list[str]:
    return [part.dim_str.strip() for part in _parts(hint) if hasattr(part, "dim_str")]


def _describe(hint: Any) -> str:
    """A hint in words, each alternative once."""
    if hint == PRNGKeyArray:
        return "a JAX random key"
    words: dict[str, None] = {}
    for part in _parts(hint):
        if hasattr(part, "dim_str"):
            kind = "a float array" if isinstance(part.dtypes, tuple) and "float32" in part.dtypes else "an array"
            shape = f"({','.join(part.dim_str.split())}{',' * (len(part.dim_str.split()) == 1)})"
            word = "a number" if not part.dim_str else kind if part.dim_str == "..." else f"{kind} of shape {shape}"
        elif typing.get_origin(part) is Literal:
            word = " or ".join(map(repr, typing.get_args(part)))
        elif part == list[Any]:  # stands beside a tuple
            continue
        elif typing.get_origin(part) is tuple:
            member, *others = typing.get_args(part)
            plural = _describe(member).replace("a number", "numbers").replace("an array", "arrays")
            word = "a tuple" if ... in others else f"a pair of {plural}"
        elif typing.get_origin(part) is Callable or part is Callable:
            word = "a function"
        elif part is type(None):
            word = "None"
        elif part is bool:
            word = "True or False"
        elif getattr(part, "_is_protocol", False):  # its docstring starts with its call
            word = f"a function {part.__doc__.partition(':')[0]}"
        elif issubclass(origin := typing.get_origin(part) or part, int | float | np.generic):
            word = "an integer" if issubclass(origin, int | np.integer) else "a number"
        else:
            word = f"a{'n' * (origin.__name__[0] in 'AEIOU')} `{_class_name(origin)}`"
        words[word] = None
    if "a number" in words:
        words.pop("an integer", None)
    return " or ".join(words)


def _remedy(name: str, hint: Any, value: Any, given: dict[str, Any], made: str | None) -> str:
    """What to do about it. `made` is the class that is constructed."""
    array = isinstance(value, jax.Array | np.ndarray)
    if isinstance(value, np.number) and float in _parts(hint):
        return f"Pass `float({name})`."
    if isinstance(value, np.ma.MaskedArray):
        return f"Fill what is masked: `{name}.filled(...)`."
    if hint == PRNGKeyArray:
        return "Make one by `jax.random.key(seed)`."
    if type(value) is int and _is_suspect(value):
        return "Pass a smaller number."
    python = next((kind for kind in (float, int, bool) if kind in _parts(hint)), None)
    if python and (array or isinstance(value, np.bool_)) and value.ndim == 0 and not isinstance(value, Tracer):
        return f"{'Pass' if _shapes(hint) else 'It is static: pass'} `{python.__name__}({name})`."
    if isinstance(value, Tracer) and not _shapes(hint):
        if made:
            return f"It is static: make one `{made}` for each value, outside of `jit` and `vmap`."
        switch = ", or select a result by `jax.lax.switch`" if name == "k" else ""
        return f"It is static: bind it outside of `jit` and `vmap`, by `functools.partial(..., {name}=...)`{switch}."
    if shapes := [shape for shape in _shapes(hint) if shape != "..."]:
        ranks = {len(shape.split()) for shape in shapes}
        if array and value.ndim > max(ranks):
            return "For a batch, use `jax.vmap` around the function."
        if array and not jnp.issubdtype(value.dtype, jnp.floating) and not is_key(value):
            return f"Convert it: `{name}.astype(jnp.float32)`."
        if array and value.ndim in ranks:
            others = [
                f"`{n}` has {show(v)}" for n, (h, v) in given.items() if n != name and _shapes(h) == _shapes(hint)
            ]
            return f"Sizes of one name must agree: {', '.join(others) or 'see the signature'}."
        if isinstance(value, list | tuple):
            return "Pass an array: `jnp.asarray(...)`."
    if _literals(hint):
        return "Pass one of the names."
    return f"Pass {_describe(hint)}."
