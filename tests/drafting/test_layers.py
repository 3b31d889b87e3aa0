"""Layers become tasks: what is exported equals the layer, what cannot be drafted says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from neuron_port.drafting.subjects.calling import NotDraftableError, attempt
from neuron_port.drafting.subjects.layers import draftable_layers
from neuron_port.errors import UsageError
from neuron_port.registry import Registry
from neuron_port.types import WeightSource
from neuron_port.walk.calls import Call
from tests.drafting.tiny_models import CONFIGS, drafted, few_recipes, walked

ROOT = Path(__file__).parents[2]


def task_of(model, layer, layers=None):
    return drafted(model, layers)[layer].task


def test_prefill_and_decode_are_one_task():
    """A module's calls of 16 tokens and of one need one kernel, which serves all layers of its shape."""
    found = drafted("gpt2")["transformer.h.0.ln_1"]
    assert len(found.signatures) == 2
    assert len(found.layers) == 5
    assert found.task.layers == found.layers
    assert found.task.task.name == "gpt2_layer_norm"
    assert found.task.task.layout == {"x": "[T, H]", "weight": "[H]", "bias": "[H]", "return": "[T, H]"}


def test_norms_of_one_width_are_one_task_and_of_two_widths_two():
    """Gemma 3's query and key norms share a kernel; its hidden norms are wider and have another."""
    found = drafted("gemma3")
    shared = found["model.layers.0.self_attn.q_norm"]
    assert "model.layers.1.self_attn.k_norm" in shared.layers
    assert "model.layers.0.self_attn.k_norm" not in found
    assert shared.task.task.name != found["model.layers.0.input_layernorm"].task.task.name


@pytest.mark.parametrize("model", ["gpt2", "gemma2", "phi", "olmo", "opt"])
def test_every_name_is_an_identifier_of_its_own(model):
    """Names are unique, are Python identifiers, and are none of the recipes' names."""
    names = [item.task.task.name for item in drafted(model).values() if item.task]
    assert names
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert not set(names) & set(Registry())


def test_a_taken_name_is_left_alone():
    """A second task that would have the name of an existing recipe gets another."""
    tiny = walked("gpt2", few_recipes())
    found = draftable_layers(tiny.walks, tiny.plan, model="gpt2", taken=["gpt2_layer_norm"])
    names = [item.task.task.name for item in found if item.task]
    assert "gpt2_layer_norm" not in names
    assert "gpt2_ln_1" in names


def test_a_reference_runs_in_float64_and_without_data():
    """The printed reference is the oracle of float32, and gives shapes where there are no values."""
    reference = task_of("gemma2", "model.layers.0.input_layernorm").task.reference
    x, weight = torch.randn(5, 48, dtype=torch.float64), torch.randn(48, dtype=torch.float64)
    exact = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + weight)
    torch.testing.assert_close(reference(x, weight), exact, rtol=1e-12, atol=1e-12)
    with FakeTensorMode():
        out = reference(torch.empty(9, 48, dtype=torch.bfloat16), torch.empty(48, dtype=torch.bfloat16))
    assert (tuple(out.shape), out.dtype) == ((9, 48), torch.bfloat16)


def test_the_bfloat16_function_rounds_where_the_layer_rounds():
    """In bfloat16 the reference has the bits of Gemma's own norm."""
    module = walked("gemma2", few_recipes()).model.model.norm
    own = type(module)(48, eps=1e-6).to(torch.bfloat16)
    torch.nn.init.normal_(own.weight)
    x = torch.randn(16, 48).to(torch.bfloat16)
    reference = task_of("gemma2", "model.layers.0.input_layernorm").task.reference
    assert torch.equal(reference(x, own.weight.detach()), own(x).detach())


def test_the_number_of_tokens_is_nowhere_in_the_code():
    """What was exported at seven tokens answers for any number, attention over them included."""
    task = task_of("gemma2", "model.layers.0.self_attn#attention").task
    assert "tokens = query.shape[2]" in task.reference_text
    for tokens in (1, 3, 40):
        heads = [torch.randn(1, count, tokens, 12) for count in (4, 2, 2)]
        assert task.reference(*heads).shape == (1, tokens, 4, 12)


def test_a_sliding_window_is_part_of_the_task():
    """Gemma 2's layers with and without a window are two tasks, although seven tokens cannot tell them apart."""
    found = drafted("gemma2")
    names = [f"model.layers.{number}.self_attn#attention" for number in (0, 1)]
    tasks = [item.task for item in found.values() if item.layers[0] in names and item.task]
    assert len({item.task.name for item in tasks}) == len(tasks) >= 2


def test_linear_weights_are_offered_transposed():
    """The weights of torch.nn.Linear come as [K, N]; Conv1D has that shape already."""
    binding = task_of("phi", "model.layers.0.mlp", ("model.layers.0.mlp",))
    assert 'WeightSource(name="fc1.weight", transform="transpose")' in binding.recipe_text
    assert binding.task.layout["fc1_weight"] == "[H, N]"
    assert "transpose" not in task_of("gpt2", "transformer.h.0.mlp.c_fc").recipe_text


def test_a_layer_can_be_named_although_it_is_a_container():
    """A whole MLP is a task when the user asks for it, its children's parameters included."""
    found = drafted("phi", ("model.layers.0.mlp",))["model.layers.0.mlp"]
    assert found.layers == ("model.layers.0.mlp", "model.layers.1.mlp")
    assert found.task.task.tensor_arguments[1:] == ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    assert found.task.task.flops((10, 48)) == 2 * 2 * 10 * 48 * 96


def test_a_misspelt_layer_names_its_neighbour():
    """A name that is no layer is refused with the nearest one."""
    tiny = walked("phi", few_recipes())
    with pytest.raises(UsageError) as raised:
        draftable_layers(tiny.walks, tiny.plan, model="phi", names=["model.layers.0.mpl"])
    assert "`model.layers.0.mpl`" in raised.value.message
    assert "model.layers.0.mlp" in str(raised.value.hint)


def test_integers_that_nothing_bounds_are_not_drafted():
    """A layer that is given positions which no table bounds is named with a sentence, never an exception."""
    found = drafted("phi")["model.rotary_emb"]
    assert found.task is None
    assert "no table says how large" in found.reason


def test_a_layer_that_fails_says_what_it_raised():
    """Whatever a layer's own code raises on random inputs becomes a reason, never an exception of ours."""

    def refuse(_x):
        raise IndexError("no such row")

    with pytest.raises(NotDraftableError, match="fails on random inputs: IndexError: no such row"):
        attempt(refuse, torch.zeros(1))


def test_positions_below_a_table_are_drawn_from_its_rows():
    """OPT looks positions up in a table of its own: ids are drawn below its rows, so it can be drafted."""
    assert drafted("opt")["model.decoder.embed_positions"].task is not None


def test_a_layer_with_state_is_refused():
    """An attention block is given the cache, which no kernel can hold."""
    found = drafted("phi", ("model.layers.0.self_attn",))["model.layers.0.self_attn"]
    assert found.task is None
    assert "is given a `Cache`" in found.reason


class _Counting(torch.nn.Module):
    """Adds up how often it ran."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x * self.weight


class _Choosing(torch.nn.Module):
    """Returns as many rows as its input says."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x[x[:, 0] > 0] * self.weight


class _Turning(torch.nn.Module):
    """Rotates by complex numbers."""

    def forward(self, x):
        return torch.view_as_real(torch.view_as_complex(x.reshape(-1, 4, 2)) * 1j).reshape(x.shape)


@pytest.mark.parametrize(
    ("module", "reason"),
    [(_Counting(), "state"), (_Choosing(), "depend on values"), (_Turning(), "complex numbers")],
    ids=["a buffer that counts", "rows chosen by values", "complex numbers"],
)
def test_layers_that_no_kernel_can_be(module, reason):
    """State, shapes that depend on values, and complex numbers are refused by name."""
    from neuron_port.drafting.subjects.layers import layer_task
    from neuron_port.walk.walker import describe

    x = torch.randn(16, 8)
    call = Call(
        name="layer", operation="module", module=module, owner=type(module).__name__, function=module.forward,
        args=(x,), kwargs={},
    )  # fmt: skip
    with torch.no_grad():
        layer = describe(call, module(x), 0)
    with pytest.raises(NotDraftableError, match=reason):
        layer_task(layer, call, tokens=16)


def test_a_rounded_constant_is_refused():
    """Gemma's embedding scale of a bfloat16 walk is another number than the float32 model's."""
    tiny = walked("gemma2", few_recipes(), torch.bfloat16)
    found = draftable_layers(tiny.walks, tiny.plan, model="gemma2", taken=list(Registry()))
    reasons = {item.layers[0]: item.reason for item in found}
    assert "rounded to" in reasons["model.embed_tokens"]
    assert drafted("gemma2")["model.embed_tokens"].task is not None


def test_the_source_shown_has_an_origin_and_a_licence():
    """The module's own PyTorch source comes with the package, its version and its licence."""
    (source,) = task_of("gemma2", "model.layers.0.input_layernorm").task.sources
    assert source.language == "pytorch"
    assert "class Gemma2RMSNorm" in source.text
    assert source.origin.startswith("transformers 5.")
    assert source.license == "Apache-2.0"


def test_the_recipe_binds_by_structure():
    """Another width, another epsilon or more tokens than were tried are not bound; the class's name plays no part."""
    from types import SimpleNamespace

    from neuron_port.drafting.subjects.reference_code import run_text
    from neuron_port.types import TensorSpec

    made = task_of("gpt2", "transformer.h.0.ln_1")
    recipe = run_text(made.recipe_text, "recipe.py")["RECIPE"]

    def call(width=48, eps=1e-5, tokens=16, **changes):
        module = torch.nn.LayerNorm(width, eps=eps)
        values = {
            "operation": "module", "module": module, "args": (None,), "kwargs": {}, "owner": "Anything",
            "attributes": {"normalized_shape": (48,), "eps": eps, "elementwise_affine": True},
            "inputs": (TensorSpec(shape=(1, tokens, width), dtype="bfloat16"),),
        }  # fmt: skip
        return SimpleNamespace(**(values | changes))

    weights = {"weight": WeightSource(name="weight"), "bias": WeightSource(name="bias")}
    assert recipe.bind(call()).weights == weights
    assert recipe.bind(call(width=64)) is None
    assert recipe.bind(call(eps=1e-6)) is None
    assert recipe.bind(call(tokens=301)) is None
    assert recipe.bind(call(operation="add")) is None
    assert recipe.bind(call(args=(None, 3))) is None


def test_cases_reach_tails_and_careless_values():
    """There are ordinary, tail and stress cases, one of them not a multiple of a tile, with every style."""
    task = task_of("gpt2", "transformer.h.0.ln_1").task
    assert {case.kind for case in task.cases} == {"ordinary", "tail", "stress"}
    assert {1, 3, 130} <= {case.sizes["T"] for case in task.cases}
    assert {case.style for case in task.cases} >= {"constant rows", "outliers", "one hot", "signed zeros"}
    assert (task.sizes["T"].least, task.sizes["T"].most) == (1, 300)
    assert task.tolerance.reduction_length == "H"


def test_elementwise_layers_sum_nothing():
    """An activation function has no reduction, so that its tolerance is that of one rounding."""
    assert task_of("olmo", "model.layers.0.input_layernorm").task.tolerance.reduction_length == "H"
    assert task_of("phi", "model.layers.0.mlp.activation_fn").task.tolerance.reduction_length is None


def test_the_same_model_gives_the_same_bytes():
    """Two processes make equal tasks: runs are found again by their key."""
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests.drafting.tiny_models import drafted\n"
        "print([item.task.task.key for item in drafted('gemma2').values() if item.task])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 100


@pytest.mark.parametrize("model", CONFIGS)
def test_generated_files_are_formatted(model, tmp_path):
    """ruff changes nothing in recipe.py and reference.py, and finds nothing in them."""
    for item in drafted(model).values():
        if item.task:
            folder = tmp_path / item.task.task.name
            folder.mkdir()
            (folder / "recipe.py").write_text(item.task.recipe_text)
            (folder / "reference.py").write_text(item.task.task.reference_text)
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(tmp_path)]
    for command in (["format", "--check", "--diff"], ["check"]):
        done = subprocess.run([*ruff, *command, *config], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
