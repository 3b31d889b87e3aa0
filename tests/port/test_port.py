"""The ported model is transformers' own forward with kernels in it: exported, interpreted, generated from."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from neuron_port.errors import UsageError
from neuron_port.match.matcher import match
from neuron_port.port.export import export_graph
from neuron_port.port.generate import Session
from neuron_port.port.operators import register, use_backend
from neuron_port.port.run import GraphRunner, WeightBank
from neuron_port.walk.families import programs_of
from neuron_port.walk.program import GraphShapes


@pytest.fixture(scope="module")
def model(tiny_llama_folder):
    return LlamaForCausalLM.from_pretrained(tiny_llama_folder, attn_implementation="eager").eval()


def text(prompt):
    """A prompt of token ids as a session takes it."""
    return {"input_ids": torch.tensor([prompt])}


@pytest.fixture(scope="module")
def plan(tiny_walks, tiny_skeleton, registry):
    names = [name for name, _ in tiny_skeleton.named_parameters()]
    return match(tiny_walks, registry, target="trn2", generation="gen3", parameters=names)


@pytest.fixture(scope="module")
def exported(tiny_walks, tiny_skeleton, registry, plan):
    register(registry)
    shapes = GraphShapes(batch=1, buckets=(16,), cache_length=32)
    return {
        item.graph.phase: export_graph(
            tiny_skeleton,
            lambda model, number=number: programs_of(model, shapes)[number],
            plan.by_layer(item.graph),
            registry,
            stored=dict(tiny_skeleton.named_parameters()),
            canonical=str,
        )
        for number, item in enumerate(tiny_walks)
    }


@pytest.fixture(scope="module")
def session(exported, model):
    weights = dict(model.named_parameters()) | {"lm_head.weight": model.lm_head.weight}
    bank = WeightBank(lambda name, dtype: weights[name].detach().to(dtype))
    steps = {phase: GraphRunner(graph, bank) for phase, graph in exported.items()}
    return lambda: Session({16: steps["prefill"]}, steps["decode"])


def test_generates_what_transformers_generates(session, model):
    """Greedy tokens and logits over static graphs equal transformers' own generation."""
    prompt = [5, 9, 200, 31, 7]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)[
        0, 5:
    ].tolist()
    running = session()
    tokens = [int(running.start(text(prompt)).argmax())]
    while len(tokens) < 8:
        tokens.append(int(running.advance(tokens[-1]).argmax()))
    assert tokens == expected
    with torch.no_grad():
        truth = model(torch.tensor([prompt + tokens])).logits[0, -1]
    assert torch.allclose(running.advance(tokens[-1]), truth, rtol=1e-4, atol=1e-5)


def test_caches_are_laid_out_as_transformers_has_them(session, model):
    """`Session.caches` gives back transformers' own keys and values."""
    running = session()
    prompt = [3, 1, 4, 1, 5, 9]
    running.start(text(prompt))
    with torch.no_grad():
        truth = model(torch.tensor([prompt]), use_cache=True).past_key_values
    for (keys, values), layer in zip(running.caches(), truth.layers, strict=True):
        assert torch.allclose(keys, layer.keys[0], atol=1e-5)
        assert torch.allclose(values, layer.values[0], atol=1e-5)


def test_padding_of_the_bucket_does_not_matter(session):
    """A prompt gives the same logits whatever stands in the unused tail of an earlier cache."""
    running = session()
    first = running.start(text([11, 12, 13]))
    running.start(text(list(range(16))))
    assert torch.equal(running.start(text([11, 12, 13])), first)


def test_no_matrix_product_is_left_outside_kernels(exported):
    """The exported graphs hold no matmul of their own: every TensorE FLOP is in a kernel."""
    left = {"aten.mm", "aten.bmm", "aten.addmm", "aten.matmul", "aten.linear", "aten.einsum"}
    for graph in exported.values():
        targets = {str(node.target) for node in graph.program.graph.nodes if node.op == "call_function"}
        assert not {target for target in targets if target.rsplit(".", 1)[0] in left}
        assert any(target.startswith("neuron_port.linear") for target in targets)


def test_interface_names_weights_states_and_aliases(exported):
    """Weights carry the checkpoint's names and their transform; every cache output is an alias of its input."""
    spec = exported["decode"].spec
    inputs = {item.name: item for item in spec.inputs}
    assert inputs["model.layers.0.self_attn.q_proj.weight"].transform == "transpose"
    assert inputs["model.embed_tokens.weight"].transform == "none"
    assert inputs["key_cache.1"].spec.shape == (1, 2, 8, 32)
    assert inputs["value_cache.1"].spec.shape == (1, 2, 32, 8)
    states = [item for item in spec.outputs if item.role == "state"]
    assert [item.alias_of for item in states] == [
        "key_cache.0",
        "value_cache.0",
        "key_cache.1",
        "value_cache.1",
    ]


def test_a_backend_replaces_the_reference_while_it_is_chosen(registry):
    """`use_backend` runs an op through another function, and ends with its block."""
    register(registry)
    x = torch.ones(2, 3)
    with use_backend({"residual_add": lambda a, b: a * 7}):
        assert torch.ops.neuron_port.residual_add(x, x).tolist() == (x * 7).tolist()
    assert torch.ops.neuron_port.residual_add(x, x).tolist() == (x * 2).tolist()


def test_a_prompt_longer_than_every_bucket_is_refused(session):
    """The sentence names both lengths and the cure."""
    with pytest.raises(UsageError, match="17 tokens, the largest bucket holds 16") as raised:
        session().start(text(list(range(17))))
    assert "--buckets" in str(raised.value.hint)


def test_a_full_cache_is_refused(session):
    """Decoding past the last slot is an error, not a wrong answer."""
    running = session()
    running.start(text(list(range(16))))
    for _ in range(16):
        running.advance(1)
    with pytest.raises(UsageError, match="fills all 32 cache slots"):
        running.advance(1)


class TestPictures:
    """A residual network: convolutions whose weights are laid out anew, and running statistics that are buffers."""

    @pytest.fixture(scope="class")
    def network(self):
        from transformers import ResNetConfig, ResNetModel

        torch.manual_seed(2)
        config = ResNetConfig(
            embedding_size=6, hidden_sizes=[8], depths=[1], num_channels=3, layer_type="basic"
        )
        config.image_size = 16
        model = ResNetModel(config).eval().requires_grad_(False)
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.normal_(1.0, 0.3)
        return model

    @pytest.fixture(scope="class")
    def graph(self, network, registry):
        from neuron_port.checkpoint import build_skeleton
        from neuron_port.walk.walker import walk

        register(registry)
        config = network.config
        config.architectures = ["ResNetModel"]
        skeleton = build_skeleton(config, torch.float32)
        shapes = GraphShapes(batch=1, buckets=(16,), cache_length=16)
        (program,) = programs_of(skeleton, shapes)
        walked = walk(skeleton, "tiny", program)
        names = [name for name, _ in skeleton.named_parameters()]
        plan = match([walked], registry, target="trn2", generation="gen3", parameters=names)
        return export_graph(
            skeleton,
            lambda model: programs_of(model, shapes)[0],
            plan.by_layer(walked.graph),
            registry,
            stored=skeleton.state_dict(),
            canonical=str,
        )

    def test_weights_say_how_they_are_laid_out_and_buffers_are_weights(self, graph):
        """A convolution's weight is permuted as its recipe wants it; running statistics have the checkpoint's names."""
        inputs = {item.name: item for item in graph.spec.inputs}
        kernel = inputs["embedder.embedder.convolution.weight"]
        assert kernel.role == "weight"
        assert kernel.transform.startswith("permute:")
        assert sorted(kernel.spec.shape) == sorted((6, 3, 7, 7))
        assert kernel.spec.shape != (6, 3, 7, 7)
        statistics = [item for name, item in inputs.items() if name.endswith(("running_mean", "running_var"))]
        assert statistics
        assert all(item.role == "weight" and item.source == item.name for item in statistics)
        assert graph.derived == {}

    def test_the_graph_computes_what_the_model_does(self, graph, network):
        """Interpreted with the model's own tensors, the graph gives transformers' own features."""
        stored = network.state_dict()
        runner = GraphRunner(graph, WeightBank(lambda name, dtype: stored[name].to(dtype)))
        picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = network(picture)
        outputs, states = runner([picture], [])
        assert states == []
        named = dict(zip([item.name for item in graph.spec.outputs], outputs, strict=True))
        torch.testing.assert_close(
            named["last_hidden_state"], expected.last_hidden_state, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(named["pooler_output"], expected.pooler_output, rtol=1e-4, atol=1e-5)
