"""Embeddings are judged by direction and by the order of their similarities, beside what rounding does by itself."""

import json

import pytest
import torch

from neuron_port.parity.embeddings import check_direction, check_ranking, embeddings_of, similarities

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def vectors(count=6, length=48, seed=0):
    """Unit vectors about a common one, so that similarities lie between 0.3 and 0.8."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, length, generator=generator) + torch.randn(1, length, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=-1)


def turned(vector, distance):
    """The vector turned until its cosine with itself is 1 - distance."""
    other = torch.randn(vector.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = torch.nn.functional.normalize(vector.double(), dim=-1)
    across = torch.nn.functional.normalize(other - (other * unit).sum() * unit, dim=-1)
    return (1 - distance) * unit + (1 - (1 - distance) ** 2) ** 0.5 * across


def direction(ours, truth, baseline=None, dtype=FLOAT32):
    return check_direction(
        "sample 1 · e", ours, truth, baseline, dtype=dtype, tier="simulator", text="a text"
    )


def ranking(ours, truth, baseline=None, dtype=FLOAT32):
    texts = [f"text {number}" for number in range(len(truth))]
    return check_ranking("e", ours, truth, baseline, dtype=dtype, tier="simulator", texts=texts)


@pytest.mark.parametrize(("dtype", "limit"), [(FLOAT32, 1e-5), (BFLOAT16, 1e-3)])
def test_the_cosine_has_a_limit_for_each_dtype(dtype, limit):
    """A vector turned by half of the limit passes with the distance it was turned by; by twice, it is refused."""
    truth = vectors()[:1]
    baseline = truth if dtype is BFLOAT16 else None
    right = direction(turned(truth, limit / 2), truth, baseline, dtype)
    assert right.passed
    assert right.metrics["cosine_distance"] == pytest.approx(limit / 2, rel=1e-4)
    assert right.detail == "a text"
    wrong = direction(turned(truth, 2 * limit), truth, baseline, dtype)
    assert not wrong.passed
    assert "cosine" in wrong.detail
    assert "a text" in wrong.detail


def test_length_does_not_count():
    """A vector of another length and the same direction passes: the distance of outputs judges lengths."""
    truth = vectors()[:1]
    assert direction(3 * truth, truth).metrics["cosine_distance"] < 1e-12


def test_a_model_that_turns_by_itself_is_allowed_twice_that():
    """Where transformers' own 16 bit lies further away than the limit, the limit is twice that distance."""
    truth = vectors()[:1]
    baseline = turned(truth, 4e-3)
    assert direction(turned(truth, 7e-3), truth, baseline, BFLOAT16).passed
    assert not direction(turned(truth, 9e-3), truth, baseline, BFLOAT16).passed


def test_vectors_that_are_not_numbers_are_refused():
    """A single nan fails direction and ranking."""
    truth = vectors()
    broken = truth.clone()
    broken[0, 3] = torch.nan
    assert not direction(broken[:1], truth[:1]).passed
    assert not ranking(broken, truth).passed


def test_the_same_order_passes():
    """Rounding to bfloat16 changes similarities and not their order; the words say how many were compared."""
    truth = vectors()
    found = ranking(truth.to(BFLOAT16), truth, truth.to(BFLOAT16), BFLOAT16)
    assert found.passed
    assert found.limits == {"swapped": 0.0}
    assert found.metrics["compared"] + found.metrics["within_noise"] == 15 * 14 / 2
    assert "all keep their order" in found.detail.partition("\n")[0]


def test_two_samples_changed_for_each_other_are_found():
    """Two embeddings in each other's place leave every vector honest, and the order is refused."""
    truth = vectors()
    found = ranking(truth[[1, 0, 2, 3, 4, 5]], truth)
    assert not found.passed
    assert found.metrics["swapped"] > 0
    assert "in another order" in found.detail.partition("\n")[0]


def test_equal_similarities_have_no_order():
    """Where all similarities are one, nothing is compared, and the case is a measurement."""
    truth = torch.eye(4)
    found = ranking(turned(truth, 1e-7), truth)
    assert found.passed
    assert not found.limits
    assert found.metrics["compared"] == 0


def test_what_is_drawn_travels_in_the_detail():
    """The line behind the words holds texts and both lists of similarities, pair by pair."""
    truth = vectors(4)
    pictured = json.loads(ranking(truth, truth).detail.partition("\n")[2])
    assert pictured["texts"] == [f"text {number}" for number in range(4)]
    expected = [(truth[a] @ truth[b]).item() for a in range(4) for b in range(a + 1, 4)]
    assert pictured["reference_similarities"] == pytest.approx(expected, abs=1e-5)
    assert similarities(truth).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [
        (("last_hidden_state", "pooler_output", "sentence_embedding"), ("sentence_embedding",)),
        (("last_hidden_state", "pooler_output"), ("pooler_output",)),
        (("logits_per_image", "text_embeds", "image_embeds"), ("text_embeds", "image_embeds")),
        (("logits",), ()),
    ],
)
def test_which_outputs_are_embeddings(outputs, chosen):
    """The sentence's embedding goes before everything; otherwise every field with one vector for each input."""
    assert embeddings_of(outputs) == chosen
