import pytest
import torch

from rl.fingerprints import differing, fingerprint, tensor_group, tensor_groups


def test_a_fingerprint_is_the_sum_and_the_sum_of_sizes():
    assert fingerprint(torch.tensor([[1.0, -2.0], [3.5, 0.0]])) == (2.5, 6.5)
    assert fingerprint(torch.tensor(-3.0)) == (-3.0, 3.0)
    assert fingerprint(torch.zeros(0)) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_sums_are_exact_in_every_dtype(dtype):
    # In bfloat16 itself 256 + 1 is 256 again.
    assert fingerprint(torch.ones(1001, dtype=dtype)) == (1001.0, 1001.0)


def test_a_view_has_the_fingerprint_of_its_copy():
    tensor = torch.randn(6, 8)[::2, 1:]
    assert fingerprint(tensor) == pytest.approx(fingerprint(tensor.contiguous()), rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.index_put((torch.tensor(5),), t[5] + 1e-4),  # one value of 10 000
        lambda t: -t,
        lambda t: t.bfloat16().float(),
        lambda t: t[:-1],
        lambda t: t.index_put((torch.tensor(5),), torch.tensor(float("nan"))),
    ],
)
def test_a_changed_tensor_differs(change):
    tensor = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    left, right = {"w": fingerprint(tensor)}, {"w": fingerprint(change(tensor))}
    assert differing(left, right) == ["w"]
    assert differing(left, dict(left)) == []


def test_nan_never_passes_for_agreement():
    nan = {"w": fingerprint(torch.tensor([float("nan")]))}
    assert differing(nan, nan) == ["w"]


def test_names_that_one_side_lacks_differ_and_keep_the_order_of_the_left():
    left = {"c": (1.0, 1.0), "a": (2.0, 2.0), "b": (3.0, 3.0)}
    right = {"b": (3.0, 3.0), "x": (0.0, 0.0), "a": (2.1, 2.1)}
    assert differing(left, right) == ["c", "a", "x"]


def test_sums_that_cancel_are_compared_by_the_size_of_what_cancelled():
    # A sum of 0 made of values around 1e6: rounding of another order of addition is no difference.
    assert differing({"w": (0.0, 1e6)}, {"w": (1e-4, 1e6)}) == []
    assert differing({"w": (0.0, 1e6)}, {"w": (1e-2, 1e6)}) == ["w"]


def test_a_tensor_belongs_to_its_decoder_layer_or_its_module():
    assert tensor_group("model.layers.3.self_attn.q_proj.weight") == "model.layers.3"
    assert tensor_group("model.embed_tokens.weight") == "model.embed_tokens"
    assert tensor_group("lm_head.weight") == "lm_head"


def test_consecutive_names_of_a_layer_are_one_group():
    names = ["model.embed_tokens.weight", "model.layers.0.a.weight", "model.layers.0.b.weight"]
    names += ["model.layers.1.a.weight", "model.norm.weight", "lm_head.weight"]
    groups = tensor_groups(names)
    assert [len(group) for group in groups] == [1, 2, 1, 1, 1]
    assert [name for group in groups for name in group] == names
