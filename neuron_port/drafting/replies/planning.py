"""Plans out of replies. A plan that does not fit the machine costs one short reply instead of several long ones.

reply ─ parse_plan ─▶ Plan ─ check_plan ─▶ sentences to send back, or none
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
from pydantic.json_schema import GenerateJsonSchema

from neuron_port.drafting.replies.parts import fenced_blocks, without_thoughts
from neuron_port.drafting.replies.plan_arithmetic import check_plan, values_of_sizes
from neuron_port.drafting.replies.plan_record import Mapped, Plan, Product, Step, Tile, Tiling, plan_adapter
from neuron_port.errors import NeuronPortError

__all__ = [
    "Mapped", "Plan", "PlanError", "Product", "Step", "Tile", "Tiling", "check_plan", "parse_plan", "plan_schema",
    "values_of_sizes",
]  # fmt: skip

MAXIMUM_REPLY_CHARACTERS = 200_000


class PlanError(NeuronPortError):
    """A reply holds no plan that can be read; the message is fit to be sent back."""


def plan_schema() -> str:
    """The JSON schema of a plan, compact."""
    schema = plan_adapter().json_schema(schema_generator=_PlainSchema)
    return json.dumps(schema, separators=(",", ":"))


def parse_plan(reply: str) -> Plan:
    """The plan in a reply: in a fenced block, or the last JSON object of the text.

    Raises:
        PlanError: no object, or one that does not fit the schema; with the parser's words.
    """
    if len(reply) > MAXIMUM_REPLY_CHARACTERS:
        raise PlanError(
            f"The reply has {len(reply)} characters; a plan has at most {MAXIMUM_REPLY_CHARACTERS}"
        )
    text = without_thoughts(reply)
    complaint = ""
    for candidate in _json_candidates(text):
        try:
            value = json.loads(candidate, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
        except RecursionError:
            complaint = complaint or "its values are nested too deeply"
        except ValueError as error:
            complaint = complaint or str(error)
        else:
            if isinstance(value, dict):
                return _validated(value)
            complaint = complaint or f"the JSON value is a {type(value).__name__}, not an object"
    if complaint:
        raise PlanError(f"The plan cannot be read as JSON: {complaint}")
    raise PlanError("The reply holds no JSON object")


def _json_candidates(text: str) -> Iterator[str]:
    """Texts that may be the object: fenced blocks from the last, then from the first brace to the last."""
    for block in reversed(fenced_blocks(text)):
        if block.text.lstrip().startswith(("{", "[")):
            yield block.text
    first, last = text.find("{"), text.rfind("}")
    if first >= 0:
        yield text[first : last + 1] if last > first else text[first:]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"the key `{name[:40]}` stands twice in one object")
        value[name] = item
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _validated(value: Mapping[str, Any]) -> Plan:
    try:
        plan: Plan = plan_adapter().validate_python(value)
    except pydantic.ValidationError as error:
        complaints = [
            f"{'.'.join(map(str, item['loc'])) or 'the object'}: {item['msg']}" for item in error.errors()[:5]
        ]
        raise PlanError(f"The plan does not fit the schema: {'; '.join(complaints)}") from error
    return plan


class _PlainSchema(GenerateJsonSchema):
    """Without titles, which repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False
