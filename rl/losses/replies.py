"""What preference losses read: replies as whole sequences, side by side for each prompt."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Replies:
    """K replies to each of P prompts; every field is (P, K) and float32 unless it says otherwise.

    Pair losses take column 0 as the chosen and column 1 as the rejected reply. Point-wise losses
    take every column for itself, list-wise ones order the columns by `scores`.

    >>> zeros = torch.zeros(1, 2)
    >>> pair = Replies(
    ...     logprobs=torch.tensor([[-12.0, -15.0]]), ref_logprobs=torch.tensor([[-13.0, -14.0]]),
    ...     lengths=torch.tensor([[6.0, 10.0]]), scores=zeros, is_demo=zeros.bool())
    >>> pair.log_ratios
    tensor([[ 1., -1.]])
    """

    logprobs: Tensor
    """S: log-probability of the reply under the policy, summed over its tokens, nats."""
    ref_logprobs: Tensor
    """The same under the reference; 0 for methods without one."""
    lengths: Tensor
    """n: tokens of the reply, EOS included."""
    scores: Tensor
    """r: reward, rating, or label (1 liked, 0 not)."""
    is_demo: Tensor
    """bool: trusted enough to be imitated."""

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
        if len(set(shapes.values())) != 1 or self.logprobs.dim() != 2:
            raise ValueError(f"fields of Replies must share one shape (P, K), not {shapes}")

    @property
    def log_ratios(self) -> Tensor:
        """h (P, K): log-probability under the policy less that under the reference, nats."""
        return self.logprobs - self.ref_logprobs

    @property
    def mean_logprobs(self) -> Tensor:
        """p (P, K): log-probability per token, nats."""
        return self.logprobs / self.lengths.clamp(min=1)
