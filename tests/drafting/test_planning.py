"""Plans are read from replies of any kind, and their arithmetic is checked against the machine."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_port.drafting.replies.planning import (
    Plan,
    PlanError,
    check_plan,
    parse_plan,
    plan_schema,
    values_of_sizes,
)
from neuron_port.recipe import Case, Size
from neuron_port.simulator.target import GEN2, GEN3, GEN4
from neuron_port.task import KernelTask, Source

TASK = KernelTask(
    name="scores",
    summary="x times w.",
    schema="(Tensor x, Tensor w) -> Tensor",
    layout={"x": "[T, K]", "w": "[K, N]", "return": "[T, N]"},
    reference=lambda x, w: x @ w,
    reference_text="def scores(x, w):\n    return x @ w\n",
    inputs=lambda sizes, draw: (),
    cases=(
        Case(name="even", kind="ordinary", sizes={"T": 128, "K": 256, "N": 512}),
        Case(name="tail", kind="tail", sizes={"T": 130, "K": 256, "N": 512}),
    ),
    sizes={"T": Size(least=1, most=1000), "K": Size(least=128, most=1024, multiple=128)},
    sources=(Source(language="triton", text="tl.dot(x, w)", origin="x.py", license="MIT"),),
)
GOOD: dict[str, Any] = {
    "summary": "x transposed is stationary, w moves.",
    "partition_axis": "K for operands, T for results",
    "free_axis": "N",
    "tiling": [
        {"size": "T", "tile": 128, "axis": "partition", "tail": "slice"},
        {"size": "K", "tile": 128, "axis": "partition", "tail": "none"},
        {"size": "N", "tile": 512, "axis": "free", "tail": "none"},
    ],
    "tiles": [
        {"name": "x_sbuf", "memory": "sbuf", "shape": [128, 1024], "dtype": "float32", "buffers": 2},
        {"name": "w_sbuf", "memory": "sbuf", "shape": [128, 512], "dtype": "bfloat16", "buffers": 2},
        {"name": "sums", "memory": "psum", "shape": [128, 512], "dtype": "float32", "buffers": 2},
    ],
    "products": [{"contraction": 128, "m": 128, "n": 512, "into": "sums"}],
    "steps": [
        {"what": "load", "instruction": "nisa.dma_copy", "engine": "dma"},
        {"what": "multiply", "instruction": "nisa.nc_matmul", "engine": "tensor"},
        {"what": "copy out", "instruction": "nisa.tensor_copy", "engine": "vector"},
        {"what": "store", "instruction": "nisa.dma_copy", "engine": "dma"},
    ],
    "edges": "The last tile of T is sliced.",
    "numerics": "Sums in float32.",
    "source_map": [{"source": "tl.dot", "nki": "nisa.nc_matmul"}],
}


def plan_with(*path: str | int, value: Any) -> Plan:
    """The good plan with one value replaced."""
    changed = json.loads(json.dumps(GOOD))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return parse_plan(json.dumps(changed))


# ---- reading ---------------------------------------------------------------------------------------------

TEXT = json.dumps(GOOD, indent=2)


@pytest.mark.parametrize(
    "reply",
    [
        TEXT,
        f"Here is the plan:\n\n```json\n{TEXT}\n```\n\nIt keeps x in SBUF.",
        f'<think>First {{a}} thought, and a wrong {{"plan": 1}}.</think>\n```\n{TEXT}\n```',
        f"still thinking</think>{TEXT}",
        f"Sure!\r\n\r\n{TEXT.replace(chr(10), chr(13) + chr(10))}\r\nDone.",
        f'```json\n{{"summary": "a draft"}}\n```\nBetter:\n```json\n{TEXT}\n```',
        f"* item\n\n  ```json\n  {TEXT.replace(chr(10), chr(10) + '  ')}\n  ```",
        f"~~~json\n{TEXT}\n~~~",
        f"```json\n{TEXT}",
    ],
    ids=["bare", "fenced", "thoughts", "lone close", "crlf", "last block", "indented", "tildes", "unclosed"],
)
def test_a_plan_is_found_in_any_reply(reply: str) -> None:
    """Fences, prose, thoughts and line breaks around the object change nothing."""
    plan = parse_plan(reply)
    assert plan.tiles[2].shape == (128, 512)
    assert plan.instructions == ("nc_matmul", "dma_copy", "tensor_copy")
    assert parse_plan(plan.text()) == plan


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("I cannot plan this.", "holds no JSON object"),
        ("", "holds no JSON object"),
        (TEXT.replace('"edges"', "'edges'"), "Expecting property name"),
        (TEXT[:-40], "cannot be read as JSON"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": 1, "a": 2}', "the key `a` stands twice"),
        ("```json\n[1, 2]\n```", "is a list, not an object"),
        ("[" * 100_000, "holds no JSON object"),
        ('{"a":' * 30_000, "nested too deeply"),
        (json.dumps(GOOD | {"colour": "red"}), "colour: Unexpected keyword argument"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "steps"}), "steps: Field required"),
        (json.dumps(GOOD | {"tiles": [{"name": "x"}]}), "tiles.0.memory: Field required"),
        (
            TEXT.replace("[\n        128,\n        512\n      ]", '["T", 512]'),
            "shape.0: Input should be a valid integer",
        ),
        (TEXT.replace('"psum"', '"dram"'), "Input should be 'sbuf' or 'psum'"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        (json.dumps(GOOD).replace("[128, 1024]", f"[128, {10**4000}]"), "less than or equal to 2147483648"),
        (json.dumps(GOOD).replace("[128, 1024]", str([128] * 9)), "at most 8 items"),
        ("x" * 200_001, "200001 characters; a plan has at most 200000"),
    ],
)
def test_an_unreadable_plan_is_refused_in_the_parsers_words(reply: str, words: str) -> None:
    """The error is a sentence that a model can act on."""
    with pytest.raises(PlanError) as raised:
        parse_plan(reply)
    assert words in raised.value.message


@settings(deadline=None)
@given(st.text(max_size=300) | st.text(alphabet='{}[]",:`~\n1a', max_size=200))
def test_reading_never_fails_otherwise(reply: str) -> None:
    """Any text gives a plan or a PlanError."""
    try:
        plan = parse_plan(reply)
    except PlanError:
        return
    assert isinstance(plan, Plan)


def test_the_schema_accepts_the_good_plan() -> None:
    """The schema in the prompt names exactly the keys that are read."""
    schema = json.loads(plan_schema())
    assert set(schema["properties"]) == set(GOOD)
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]) == {"Tiling", "Tile", "Product", "Step", "Mapped"}


# ---- arithmetic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["inf2", "trn2", "trn3"])
def test_a_plan_that_fits_has_no_complaints(target: str) -> None:
    """The good plan fits all machines."""
    assert check_plan(plan_with("summary", value="same"), TASK, target) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("tiling", 0, "tile"), 256, "Size T is tiled by 256 along the partitions, which are 128"),
        (("tiling", 0, "tile"), 0, "Size T is tiled by 0; a tile has at least 1"),
        (("tiling", 0, "tail"), "none", "Size T may be 1, which tiles of 128 do not divide (1 are left)"),
        (("tiling", 2, "tile"), 500, "Size N may be 512, which tiles of 500 do not divide (12 are left)"),
        (("tiling", 0, "size"), "B", "The task has no size `B`; its sizes are T, K, N"),
        (("tiling", 0, "size"), "K", "does not say how size T is walked"),
        (("tiles", 0, "shape"), [256, 1024], "`x_sbuf` [256, 1024] has 256 partitions, at most 128"),
        (("tiles", 0, "shape"), [128], "has 1 dimensions; a tile has 2 to 5"),
        (("tiles", 0, "shape"), [128, 0], "has a dimension below 1"),
        (("tiles", 0, "buffers"), 0, "has 0 buffers"),
        (("tiles", 0, "dtype"), "float64", "has dtype `float64`, which NKI does not have"),
        (("tiles", 2, "shape"), [128, 4608], "takes 18432 bytes per partition of PSUM, which has 16384 in 8 banks"),
        (("tiles", 2, "buffers"), 9, "take 9 banks (`sums` 9 banks), there are 8"),
        (("tiles", 2, "dtype"), "bfloat16", "accumulates in bfloat16: sums of products in PSUM are float32"),
        (("tiles", 0, "shape"), [128, 40000], "take 322048 bytes per partition (`x_sbuf` 320000 bytes"),
        (("products", 0, "contraction"), 256, "a contraction of 256, which must be 1 to 128: add up several products"),
        (("products", 0, "m"), 129, "m (stationary free) of 129, which must be 1 to 128"),
        (("products", 0, "n"), 1024, "n (moving free) of 1024, which must be 1 to 512"),
        (("products", 0, "into"), "x_sbuf", "needs a tile of that name in PSUM"),
        (("tiles", 2, "shape"), [64, 512], "has m of 128, but the tile has 64 partitions"),
        (("tiles", 2, "shape"), [128, 256], "has n of 512, but the tile has 256 columns"),
        (("products",), [], "uses nc_matmul, but `products` is empty"),
        (("steps", 2, "instruction"), "nisa.tensor_cpy", "has no `tensor_cpy`: did you mean nisa.tensor_copy?"),
        (("steps", 2, "instruction"), "nisa.tensor_copy_dynamic_src", "`tensor_copy_dynamic_src`: nisa.tensor_copy("),
        (("steps",), [], "The plan has no steps"),
        (("steps",), [GOOD["steps"][1]], "No step moves data between HBM and SBUF"),
        (("source_map",), [], "`source_map` is empty"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_told_why(path: tuple[str | int, ...], value: Any, words: str) -> None:
    """One wrong value gives a sentence with the number, the limit and the cure."""
    complaints = check_plan(plan_with(*path, value=value), TASK, "trn2")
    assert any(words in complaint for complaint in complaints), complaints
    assert all(complaint.endswith((".", "?", ")")) for complaint in complaints), complaints


def test_limits_are_those_of_the_target() -> None:
    """A wide product fits NeuronCore-v4 alone, and a machine with fewer banks refuses what others take."""
    wide = plan_with("products", 0, value={"contraction": 128, "m": 128, "n": 2048, "into": "sums"})
    tile = dataclasses.replace(wide.tiles[2], shape=(128, 2048), buffers=1)
    wide = dataclasses.replace(wide, tiles=(*wide.tiles[:2], tile))
    assert check_plan(wide, TASK, GEN4) == []
    assert any("1 to 512" in complaint for complaint in check_plan(wide, TASK, GEN3))
    good = plan_with("summary", value="same")
    assert any(
        "there are 1" in line for line in check_plan(good, TASK, dataclasses.replace(GEN3, psum_banks=1))
    )
    columns = GEN2.sbuf_usable_bytes_per_partition // 4
    full = dataclasses.replace(good.tiles[0], shape=(128, columns), buffers=1)
    only = dataclasses.replace(good, tiles=(full, good.tiles[2]))
    assert check_plan(only, TASK, GEN2) == []
    more = dataclasses.replace(
        only, tiles=(dataclasses.replace(full, shape=(128, columns + 1)), good.tiles[2])
    )
    assert any("usable are" in line for line in check_plan(more, TASK, GEN2))
    assert check_plan(more, TASK, GEN3) == []


def test_sizes_take_the_values_of_cases_and_ranges() -> None:
    """The values that tilings are tried on include both ends of a range and its second value."""
    assert values_of_sizes(TASK) == {
        "T": (1, 2, 128, 130, 1000),
        "K": (128, 256, 1024),
        "N": (512,),
    }
    assert all(math.gcd(value, 128) == 128 for value in values_of_sizes(TASK)["K"])


@settings(deadline=None)
@given(st.integers(-5, 10_000), st.integers(-5, 10_000), st.integers(-3, 40))
def test_any_numbers_are_judged(partitions: int, columns: int, buffers: int) -> None:
    """A tile is accepted exactly if it fits, whatever its numbers."""
    plan = plan_with(
        "tiles", 1, value=GOOD["tiles"][1] | {"shape": [partitions, columns], "buffers": buffers}
    )
    fits = (
        1 <= partitions <= 128
        and columns >= 1
        and buffers >= 1
        and 2 * 4096 + buffers * columns * 2 <= GEN3.sbuf_usable_bytes_per_partition
    )
    assert (check_plan(plan, TASK, GEN3) == []) is fits
