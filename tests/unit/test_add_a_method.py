"""docs/add-a-method.md, run as it stands: a function and a row are a method."""

import re
from pathlib import Path

import pytest
import torch

from configs import methods
from configs.load import ConfigError, load_config
from rl.losses import preference
from rl.losses.replies import Replies
from rl.methods import preference_loss

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
MINIMAL = [
    "model.path=m", "data.train=pairs.jsonl", "data.sampling.max_new_tokens=16",
    "cluster.run_dir=r", "algorithm.num_steps=3",
]  # fmt: skip


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> int:
    """The page's code in its two places, for one test; returns its number of lines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    function, row = blocks
    monkeypatch.setattr(preference, "exponential", None, raising=False)
    exec(compile(function, str(PAGE), "exec"), vars(preference))
    monkeypatch.setattr(methods, "METHODS", methods.METHODS)
    monkeypatch.setitem(methods.METHODS, "exponential", methods.METHODS["dpo"])
    exec(compile(row, str(PAGE), "exec"), vars(methods))
    return sum(len(block.strip().splitlines()) for block in blocks)


@pytest.mark.usefixtures("added")
def test_the_new_row_is_a_configuration_and_takes_its_own_constants():
    config = load_config(None, [*MINIMAL, "algorithm.name=exponential", "algorithm.loss.beta=0.2"])
    assert config.algorithm.loss.parameters() == {"beta": 0.2}
    assert config.data.source == "stored"
    with pytest.raises(ConfigError, match=r"algorithm\.loss\.eta has no meaning .* takes beta"):
        load_config(None, [*MINIMAL, "algorithm.name=exponential", "algorithm.loss.eta=0.2"])


@pytest.mark.usefixtures("added")
def test_the_new_loss_is_found_and_falls_as_the_margin_grows():
    loss = preference_loss("exponential")
    assert loss.needs == ()
    logprobs = torch.tensor([[-12.0, -15.0]], requires_grad=True)
    zeros = torch.zeros(1, 2)
    replies = Replies(
        logprobs=logprobs,
        ref_logprobs=torch.tensor([[-13.0, -14.0]]),
        lengths=zeros + 5,
        scores=zeros,
        is_demo=zeros.bool(),
    )
    value = loss.function(replies, beta=0.1)
    value.sum().backward()
    assert value.item() == pytest.approx(0.818730753, abs=1e-6)  # exp(-0.2)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.0818730753, 0.0818730753], abs=1e-6)


def test_the_example_is_short(added: int):
    assert added <= 30


def test_without_the_row_there_is_no_such_method():
    assert not hasattr(preference, "exponential")
    with pytest.raises(ConfigError, match="exponential is not a method"):
        load_config(None, [*MINIMAL, "algorithm.name=exponential"])
