"""Numbers and shapes as people read them: three significant digits, units, no false precision."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from neuron_port.types import TensorSpec


def share_text(share: float) -> str:
    """A share of a whole, 0 to 1, in percent: "41.2 %", "<0.1 %", "0 %"."""
    if math.isnan(share):
        return "nan"
    if share == 0:
        return "0 %"
    if share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return "100 %" if share == 1 else f"{share * 100:.1f} %"


def limit_share_text(share: float) -> str:
    """How much of a limit was used: "0.83", "12.4", "exact" for zero, "infinite" beyond any number."""
    if math.isnan(share):
        return "nan"
    if share == 0:
        return "exact"
    if math.isinf(share):
        return "infinite"
    return metric_text(share) if share < 1e-3 or share >= 1e4 else f"{share:.3g}"


def metric_text(value: float) -> str:
    """A measured value with three significant digits: "0.834", "1.20e-7", "12", "nan"."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:#.3g}".rstrip(".")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def bytes_text(size_bytes: float) -> str:
    """A size in binary units: "512 B", "1.46 MiB"."""
    return _with_unit(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def flops_text(flops: float) -> str:
    """Floating point operations in decimal units: "34.6 GFLOP"."""
    return _with_unit(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def seconds_text(seconds: float) -> str:
    """A duration: "85 ms", "4.2 s", "2 min 05 s", "1 h 02 min"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def shape_text(shape: Sequence[int]) -> str:
    """A shape in one word: "[1,128,576]"."""
    return f"[{','.join(map(str, shape))}]"


def specs_text(specs: Sequence[TensorSpec]) -> str:
    """Shapes of several tensors, repeats counted: "[1,9,128,64] 2×[1,3,128,64]"."""
    return shapes_text([spec.shape for spec in specs])


def shapes_text(shapes: Sequence[Sequence[int]]) -> str:
    """As `specs_text`, for bare shapes."""
    words: list[tuple[str, int]] = []
    for shape in map(shape_text, shapes):
        if words and words[-1][0] == shape:
            words[-1] = (shape, words[-1][1] + 1)
        else:
            words.append((shape, 1))
    return " ".join(word if count == 1 else f"{count}×{word}" for word, count in words)


def dtypes_text(specs: Sequence[TensorSpec]) -> str:
    """The dtypes in use, each once, in order."""
    return ", ".join(dict.fromkeys(spec.dtype for spec in specs))


def names_text(names: Sequence[str], most: int = 3) -> str:
    """Layer names with folded indices: "model.layers.0–29.mlp"; at most `most` patterns are spelled out."""
    indices: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$|#)", "\0", name)
        indices.setdefault(pattern, []).append(tuple(map(int, re.findall(r"(?<=\.)\d+(?=\.|$|#)", name))))
    words = [_fold(pattern, found) for pattern, found in indices.items()]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def breakable(text: str) -> Markup:
    """A name, escaped, that a browser may break after dots, underlines and commas, and before camel humps."""
    places = r"(?<=[._,#])(?=[^\s._])|(?<=[a-z])(?=[A-Z])"
    return Markup("<wbr>").join(re.split(places, text))


def with_code(text: str) -> Markup:
    """Prose, escaped, with its `backticked` parts set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def plain_json(value: Any) -> Any:
    """The value with NaN and infinities spelled as text, so that it is JSON for every reader."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return value


def _fold(pattern: str, found: list[tuple[int, ...]]) -> str:
    for column in zip(*found, strict=True):
        pattern = pattern.replace("\0", _range_text(sorted(set(column))), 1)
    return pattern


def _range_text(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if last - first == len(numbers) - 1:
        return str(first) if first == last else f"{first}–{last}"
    return "{" + ",".join(map(str, numbers)) + "}"


def _with_unit(value: float, base: int, units: Sequence[str]) -> str:
    position = 0
    while abs(value) >= base * 0.9995 and position < len(units) - 1:
        value, position = value / base, position + 1
    number = str(int(value)) if value == int(value) else f"{value:#.3g}".rstrip(".")
    return f"{number} {units[position]}"
