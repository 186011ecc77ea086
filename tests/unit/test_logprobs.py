from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rl.logprobs import head_logprobs, next_token_layout

N, H, V = 13, 6, 11
TEMPERATURE = 0.7


def inputs(dtype=torch.float64, n=N, h=H, v=V):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, h, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(v, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(v, (n,), generator=g)
    mix = torch.randn(2, n, generator=g)
    return hidden, weight, bias, targets, mix


def plain(hidden, weight, bias, targets, temperature):
    """The same with full logits, in the maths dtype."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).T + (0 if bias is None else bias.to(dtype))
    logp = torch.log_softmax(logits / temperature, -1)
    return logp.gather(-1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def gradients(function, leaves, mix, *args):
    logprobs, entropy = function(*args)
    loss = (mix[0] * logprobs + mix[1] * entropy).sum()
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 4, N, 100])
def test_values_and_gradients_equal_plain_log_softmax_in_float64(with_bias, chunk_size):
    hidden, weight, bias, targets, mix = inputs()
    bias = bias if with_bias else None
    args = (hidden, weight, bias, targets, TEMPERATURE)
    for ours, theirs in zip(head_logprobs(*args, chunk_size), plain(*args), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [hidden, weight] + ([bias] if with_bias else [])
    ours = gradients(head_logprobs, leaves, mix, *args, chunk_size)
    theirs = gradients(plain, leaves, mix, *args)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_bfloat16_inputs_are_computed_in_float32():
    hidden, weight, bias, targets, mix = inputs(torch.bfloat16)
    args = (hidden, weight, bias, targets, TEMPERATURE)
    for ours, theirs in zip(head_logprobs(*args, 4), plain(*args), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours = gradients(head_logprobs, [hidden, weight, bias], mix, *args, 4)
    theirs = gradients(plain, [hidden, weight, bias], mix, *args)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-3)  # one rounding to bfloat16


def test_the_weight_gradient_of_many_chunks_accumulates_in_float32():
    """In bfloat16, adding 512 chunks one by one would lose most of the late ones to rounding."""
    hidden, weight, bias, targets, mix = inputs(torch.bfloat16, n=512)
    args = (hidden, weight, bias, targets, TEMPERATURE)
    (ours,) = gradients(head_logprobs, [weight], mix, *args, 1)
    (whole,) = gradients(head_logprobs, [weight], mix, *args, 512)
    torch.testing.assert_close(ours, whole, rtol=2**-7, atol=1e-3)


def test_autograd_agrees_with_finite_differences():
    hidden, weight, bias, targets, _ = inputs(n=3, h=2, v=4)
    torch.autograd.gradcheck(
        lambda h, w, b: head_logprobs(h, w, b, targets, TEMPERATURE, 2), (hidden, weight, bias)
    )


def test_frozen_inputs_get_no_gradient_and_free_ones_the_same():
    hidden, weight, _, targets, mix = inputs()
    (expected,) = gradients(plain, [hidden], mix, hidden, weight, None, targets, TEMPERATURE)
    frozen = weight.detach()
    (ours,) = gradients(head_logprobs, [hidden], mix, hidden, frozen, None, targets, TEMPERATURE, 4)
    torch.testing.assert_close(ours, expected)
    hidden2 = hidden.detach()
    (ours,) = gradients(
        head_logprobs, [weight], mix, hidden2, weight, None, targets, TEMPERATURE, 4
    )
    (expected,) = gradients(plain, [weight], mix, hidden2, weight, None, targets, TEMPERATURE)
    torch.testing.assert_close(ours, expected)


def test_without_gradients_nothing_is_recorded_and_the_values_are_the_same():
    hidden, weight, bias, targets, _ = inputs()
    recorded = head_logprobs(hidden, weight, bias, targets, TEMPERATURE, 4)
    with torch.no_grad():
        free = head_logprobs(hidden, weight, bias, targets, TEMPERATURE, 4)
    assert recorded[0].requires_grad
    assert not free[0].requires_grad
    for a, b in zip(recorded, free, strict=True):
        assert torch.equal(a, b)


def test_a_batch_without_rows_gives_empty_outputs_and_zero_gradients():
    hidden, weight, bias, targets, mix = inputs(n=0)
    grads = gradients(
        head_logprobs, [hidden, weight, bias], mix, hidden, weight, bias, targets, 1.0, 4
    )
    assert grads[0].shape == (0, H)
    assert not grads[1].any()
    assert not grads[2].any()


def test_weights_may_leave_and_return_between_forward_and_backward():
    """ZeRO-3 frees a parameter's storage after forward and gathers it again before backward."""
    hidden, weight, bias, targets, mix = inputs()
    expected = gradients(
        plain, [hidden, weight, bias], mix, hidden, weight, bias, targets, TEMPERATURE
    )
    logprobs, entropy = head_logprobs(hidden, weight, bias, targets, TEMPERATURE, 4)
    node: Any = logprobs.grad_fn
    saved = node.saved_tensors
    assert any(tensor is weight for tensor in saved)  # so that nothing keeps the full one alive
    assert any(tensor is bias for tensor in saved)
    full_weight, full_bias = weight.data.clone(), bias.data.clone()
    weight.data, bias.data = torch.empty(0).double(), torch.empty(0).double()
    weight.data, bias.data = full_weight, full_bias
    (mix[0] * logprobs + mix[1] * entropy).sum().backward()
    for leaf, grad in zip((hidden, weight, bias), expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation's output held."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


def test_no_tensor_of_all_rows_times_the_vocabulary_is_ever_made():
    n, h, v, chunk = 512, 4, 600, 16
    hidden, weight, bias, targets, mix = inputs(torch.float32, n=n, h=h, v=v)
    leaves = [hidden, weight, bias]
    with LargestTensor() as ours:
        gradients(head_logprobs, leaves, mix, hidden, weight, bias, targets, 1.0, chunk)
    with LargestTensor() as theirs:
        gradients(plain, leaves, mix, hidden, weight, bias, targets, 1.0)
    assert theirs.numel == n * v  # the measure sees what it should
    assert ours.numel == chunk * v


def test_entropy_and_logprobs_survive_large_logits():
    hidden = torch.tensor([[1000.0], [0.0]])
    weight = torch.tensor([[1.0], [0.0]])
    logprobs, entropy = head_logprobs(hidden, weight, None, torch.tensor([1, 1]), 1.0)
    assert logprobs.tolist() == pytest.approx([-1000, -0.693147])
    assert entropy.tolist() == pytest.approx([0, 0.693147])


TOKENS = torch.tensor([[5, 6, 7, 0], [8, 9, 4, 3]])
NEEDED = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]])


def test_the_hidden_state_before_a_token_predicts_it():
    layout = next_token_layout(TOKENS, NEEDED)
    hidden = torch.arange(8).view(2, 4, 1)  # b * 4 + t
    assert layout.targets.tolist() == [7, 9, 4, 3]
    assert layout.select(hidden).flatten().tolist() == [1, 4, 5, 6]


def test_rows_return_to_their_tokens_and_index_0_stays_0():
    layout = next_token_layout(TOKENS, NEEDED)
    scattered = layout.scatter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert scattered.tolist() == [[0, 0, 1, 0], [0, 2, 3, 4]]


def test_layout_carries_gradients_to_the_hidden_states():
    layout = next_token_layout(TOKENS, NEEDED)
    hidden = torch.zeros(2, 4, 1, requires_grad=True)
    layout.scatter(layout.select(hidden).squeeze(1)).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.squeeze(-1).tolist() == [[0, 1, 0, 0], [1, 1, 1, 0]]


def test_layout_and_head_give_the_log_probs_of_a_shifted_softmax():
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(2, 4, H, generator=g), torch.randn(V, H, generator=g)
    layout = next_token_layout(TOKENS, NEEDED)
    rows, _ = head_logprobs(layout.select(hidden), weight, None, layout.targets, TEMPERATURE, 2)
    full = torch.log_softmax(hidden @ weight.T / TEMPERATURE, -1)
    expected = torch.zeros(2, 4)
    for b in range(2):
        for t in range(1, 4):
            expected[b, t] = full[b, t - 1, TOKENS[b, t]] * NEEDED[b, t]
    torch.testing.assert_close(layout.scatter(rows), expected)


@pytest.mark.gpu
def test_cuda_bfloat16_agrees_with_the_cpu():
    hidden, weight, bias, targets, mix = inputs(torch.bfloat16)
    cpu = gradients(head_logprobs, [hidden, weight], mix, hidden, weight, bias, targets, 1.0, 4)
    moved = [x.detach().cuda().requires_grad_() for x in (hidden, weight, bias)]
    cuda = gradients(head_logprobs, moved[:2], mix.cuda(), *moved, targets.cuda(), 1.0, 4)
    for a, b in zip(cpu, cuda, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=2**-6, atol=1e-2)
