"""Made-up replies for the tests of preference losses, in float64 with a gradient on `logprobs`."""

import torch

from rl.losses.replies import Replies

F64 = torch.float64


def replies(logprobs, ref_logprobs=None, lengths=None, scores=None, is_demo=None):
    """One row (K,) or rows (P, K) each; what is left out is 0, and lengths are 1."""

    def rows(values, fill=0.0):
        if values is None:
            return torch.full_like(base, fill)
        return torch.atleast_2d(torch.as_tensor(values, dtype=F64)).clone()

    base = torch.atleast_2d(torch.as_tensor(logprobs, dtype=F64)).detach().clone()
    return Replies(
        logprobs=base.requires_grad_(),
        ref_logprobs=rows(ref_logprobs),
        lengths=rows(lengths, 1.0),
        scores=rows(scores),
        is_demo=rows(is_demo).bool(),
    )


def random_replies(prompts, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, prompts, k, generator=g, dtype=F64)
    lengths = torch.randint(2, 9, (prompts, k), generator=g)
    return replies(-9 + draw[0] * 2, -9 + draw[1] * 2, lengths, draw[2], draw[3] > 0)


def example_a(s_w=-12.0):
    """Example A of the survey's table: h_w = 1, h_l = -1."""
    return replies([s_w, -15.0], [-13.0, -14.0], [6.0, 10.0])


def gradient(loss, of):
    """(P, K): d sum(loss) / d logprobs."""
    (slope,) = torch.autograd.grad(loss.sum(), of.logprobs)
    return slope


def assert_slope_is_numerical(loss_of, row):
    """Autograd of `loss_of` at `row` agrees with central differences in float64."""
    step = 1e-6
    slope = gradient(loss_of(row), row)
    constants = (row.ref_logprobs, row.lengths, row.scores, row.is_demo)
    for k in range(slope.shape[1]):
        shift = torch.zeros_like(slope)
        shift[:, k] = step
        up, down = (loss_of(replies(row.logprobs + s, *constants)).sum() for s in (shift, -shift))
        torch.testing.assert_close(
            slope[:, k].sum(), ((up - down) / (2 * step)).detach(), rtol=1e-5, atol=1e-7
        )
