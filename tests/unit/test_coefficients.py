"""T5.3: the closed-form coefficient of each method is the derivative of its loss."""

import inspect
import itertools
import re
from dataclasses import replace

import pytest
import torch

from configs.methods import METHODS
from configs.schema import AlgorithmConfig, LossConfig
from rl.advantages import group_normalised, rloo, spread_over_tokens
from rl.coefficients import COEFFICIENTS, coefficient, symbols
from rl.coefficients import policy as closed
from rl.coefficients import rpo as rpo_coefficients
from rl.kl import kl_loss
from rl.losses.policy import policy_objective
from rl.losses.supervised import nll, pair_loss
from rl.masking import aggregate
from rl.methods import preference_loss
from tests.unit.made_up_replies import F64, gradient, random_replies, replies

OFFLINE = ("sft", "reward_model")
PREFERENCE = [
    name
    for name, row in METHODS.items()
    if "loss" in row.algorithm and row.algorithm["loss"]["name"] in COEFFICIENTS
]
"""A new loss needs no closed form to be a method (docs/add-a-method.md)."""
POLICY = [
    name for name, row in METHODS.items() if "loss" not in row.algorithm and name not in OFFLINE
]
COLUMNS = {"point": [3], "pair": [2, 3], "list": [2, 4]}
"""Replies to a prompt: a third column beside a pair is one that was explored, or is not read."""


# ---- losses of whole replies ---------------------------------------------------------------------


def made_up(name, k, kind):
    """Ordinary replies; those beyond every bound; a policy that has not moved."""
    row = random_replies(40, k, seed=k)
    if name in ("kto", "pointwise_dpo", "ulma", "unlikelihood"):
        row = replace(row, scores=(row.scores > 0).to(F64))
    if kind == "far":
        shift = 30 * torch.randn(row.lengths.shape, generator=generator(), dtype=F64)
        row = replace(row, ref_logprobs=row.ref_logprobs + shift)
    elif kind == "unmoved":
        row = replace(row, ref_logprobs=row.logprobs.detach().clone())
    return row


def generator():
    return torch.Generator().manual_seed(7)


def extras(needs, row):
    num_rows, k = row.lengths.shape
    known = {
        "explored": torch.randint(k, (num_rows,), generator=generator()),
        "baseline": torch.tensor(0.4, dtype=F64),
    }
    return {name: known[name] for name in needs}


def assert_coefficient(loss_name, row, parameters):
    """delta / |o| is the direction in which descent on the loss moves each reply's log-prob."""
    loss = preference_loss(loss_name)
    given = extras(loss.needs, row) | parameters
    slope = gradient(loss.function(row, **given), row)
    assert slope.abs().max() > 0
    delta = COEFFICIENTS[loss_name].function(row, **given)
    assert delta.shape == row.lengths.shape
    torch.testing.assert_close(delta.detach() / row.lengths, -slope, atol=1e-9, rtol=1e-9)


def own_parameters(name):
    return LossConfig(**METHODS[name].algorithm["loss"]).parameters()


@pytest.mark.parametrize("kind", ["ordinary", "far", "unmoved"])
@pytest.mark.parametrize("name", PREFERENCE)
def test_a_preference_method_with_its_own_parameters(name, kind):
    assert coefficient(name).function is COEFFICIENTS[loss_of(name)].function
    for arity in METHODS[name].arities:
        for k in COLUMNS[arity]:
            assert_coefficient(loss_of(name), made_up(name, k, kind), own_parameters(name))


def loss_of(name):
    return METHODS[name].algorithm["loss"]["name"]


RPO_GRID = [
    {"distance": d, "target": t, "implicit": i}
    for d, t, i in itertools.product(
        ["sq", "bwd", "fwd", "ce"],
        ["scores", "hard", "smoothed", "margin"],
        ["log_ratio", "mean_log_ratio", "logprob", "mean_logprob", "forward_kl", "js"],
    )
    if t != "hard" or d in ("bwd", "ce")
]


@pytest.mark.parametrize("member", RPO_GRID, ids=lambda member: "-".join(member.values()))
def test_every_member_of_rpo(member):
    numbers = {"beta": 0.3, "eta": 1.7, "gamma": 0.4, "epsilon": 0.2, "margin": 0.9, "scale": 1.3}
    for k in (2, 4):
        assert_coefficient("rpo", random_replies(6, k), member | numbers)


@pytest.mark.parametrize("logp_reduction", ["sum", "token_mean"])
@pytest.mark.parametrize("label_mode", ["binary", "continuous"])
@pytest.mark.parametrize("name", ["pointwise_dpo", "ulma"])
def test_pointwise_options(name, label_mode, logp_reduction):
    options = {"beta": 0.6, "c": 0.3, "label_mode": label_mode, "logp_reduction": logp_reduction}
    row = made_up(name if label_mode == "binary" else "", 3, "ordinary")
    assert_coefficient(name, row, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unlikelihood", {"logp_reduction": "sum"}),
        ("unlikelihood", {"weight": 0.0}),
        ("kto", {"beta": 0.5, "desirable": 1.3, "undesirable": 0.7}),
        ("slic", {"delta": 0.5, "weight": 0.3, "imitated": 2}),
        ("selm", {"beta": 0.4, "alpha": 0.2, "cap": 0.5}),
        ("rrhf", {"sft": 0.3}),
        ("lipo", {"beta": 2.0}),
    ],
)
def test_options_that_no_row_sets(name, options):
    assert_coefficient(name, made_up(name, 3, "ordinary"), options)


def test_lists_whose_best_replies_tie():
    row = replies([[-3.0, -4.0, -2.0]], lengths=[[2.0, 5.0, 3.0]], scores=[[1.0, 1.0, 0.0]])
    for name in ("rrhf", "pro", "lipo"):
        assert_coefficient(name, row, {})


def test_orpo_where_a_reply_is_certain():
    row = replies([[0.0, -4.0]], lengths=[[2.0, 5.0]])
    assert_coefficient("orpo", row, {"weight": 0.5})


def test_a_coefficient_takes_what_its_loss_takes():
    for name in {loss_of(name) for name in PREFERENCE}:
        parameters = inspect.signature(preference_loss(name).function).parameters
        assert inspect.signature(COEFFICIENTS[name].function).parameters == parameters, name


# ---- losses of tokens ----------------------------------------------------------------------------


def tokens(seed=0, far=False):
    """(6, 5) log-probs with gradient, old and reference ones, advantages of replies, a mask."""
    g = torch.Generator().manual_seed(seed)
    logprobs, old, ref = -2 * torch.rand(3, 6, 5, generator=g, dtype=F64)
    if far:  # beyond the bounds on log-ratios, both ways
        old[0, 1], old[2, 0], ref[1, 1], ref[3, 1] = -30, 30, 30, 5
    scores = torch.randn(2, 3, generator=g, dtype=F64)
    mask = torch.ones(6, 5, dtype=torch.bool).tril(2).roll(1, 1)
    return logprobs.requires_grad_(), old, ref, scores, mask


def token_delta(loss, logprobs, mask):
    """-|o| B dL / dlogprob."""
    (slope,) = torch.autograd.grad(loss, logprobs)
    assert slope.abs().max() > 0
    return -mask.sum(-1, keepdim=True) * len(mask) * slope


def assert_policy_coefficient(settings, seed, far=False):
    logprobs, old, ref, scores, mask = tokens(seed, far)
    if settings.ratio == "geometric":  # within reach of its narrow clip
        old = logprobs.detach() + 3e-4 * (old + 1)
    estimate = {"rloo": rloo, "top1": lambda s: (s == s.amax(-1, keepdim=True)).to(F64)}
    scores = estimate.get(settings.advantage, group_normalised)(scores)
    advantages = spread_over_tokens(scores.flatten(), mask)
    clip = {name: getattr(settings, name) for name in ("clip_low", "clip_high", "dual_clip")}
    loss, _ = policy_objective(logprobs, old, advantages, mask, ratio=settings.ratio, **clip)
    kl = {}
    if settings.kl.place == "loss":
        loss = loss + settings.kl.coef * kl_loss(logprobs, ref, settings.kl.estimator)
        kl = {"kl_coef": settings.kl.coef, "kl_estimator": settings.kl.estimator}
    counts = {"num_tokens": mask.sum(), "num_sequences": len(mask), "longest": 7}
    loss = aggregate(loss, mask, settings.aggregation, **counts)
    delta = closed.policy_gradient(
        logprobs.detach(),
        old,
        advantages,
        mask,
        ref,
        ratio=settings.ratio,
        **clip,
        aggregation=settings.aggregation,
        mean_length=mask.sum() / len(mask),
        longest=7,
        **kl,
    )
    wanted = token_delta(loss, logprobs, mask)
    torch.testing.assert_close(delta, wanted, atol=1e-9, rtol=1e-9)
    return (delta == 0) & mask


def settings_of(name, **changes):
    return AlgorithmConfig(**({"name": name, "num_steps": 1, "optimizer": {}} | changes))


@pytest.mark.parametrize("name", POLICY)
def test_a_policy_gradient_with_its_own_parameters(name):
    settings = settings_of(name, **METHODS[name].algorithm)
    assert coefficient(name).function is closed.policy_gradient
    is_closed = [assert_policy_coefficient(settings, seed, far=seed > 3).any() for seed in range(8)]
    assert any(is_closed) or settings.ratio in ("none", "cispo"), "no made-up ratio is clipped"


@pytest.mark.parametrize("ratio", ["none", "token", "sequence", "geometric", "cispo"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_every_ratio_and_aggregation_with_a_dual_clip(ratio, aggregation):
    settings = settings_of(
        "x",
        ratio=ratio,
        aggregation=aggregation,
        advantage="rloo",
        dual_clip=1.5,
        kl={"coef": 0.3, "place": "loss", "estimator": "k2"},
    )
    for seed in range(4):
        assert_policy_coefficient(settings, seed)


def test_imitation_counts_every_token_of_a_step_once():
    logprobs, *_, mask = tokens()
    lengths, mean = mask.sum(-1), mask.sum() / len(mask)
    wanted = token_delta(nll(logprobs, mask).sum() / mask.sum(), logprobs, mask)
    delta = COEFFICIENTS["sft"].function(lengths, mean_length=mean)
    torch.testing.assert_close(
        spread_over_tokens(delta, mask), wanted, atol=1e-6, rtol=0, check_dtype=False
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_reward_model_is_moved_along_the_gradient_of_its_scores(smoothing):
    scores = torch.randn(5, 2, generator=generator(), dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(pair_loss(scores[:, 0], scores[:, 1], smoothing).sum(), scores)
    delta = COEFFICIENTS["reward_model"].function(*scores.detach().T, smoothing)
    torch.testing.assert_close(delta, -slope, atol=1e-9, rtol=0)


# ---- texts ---------------------------------------------------------------------------------------


class _Indicator:
    def __getitem__(self, condition):
        return torch.as_tensor(condition).to(F64)


def evaluate(text, row, given):
    """The formula read as arithmetic on `row`: what stands there, not what was meant."""
    S, p, h, n, r = row.logprobs, row.mean_logprobs, row.log_ratios, row.lengths, row.scores
    S, p, h = S.detach(), p.detach(), h.detach()
    column = torch.arange(row.lengths.shape[1])
    names = {
        "S": S, "p": p, "h": h, "n": n, "r": r, "K": row.lengths.shape[1],
        "w": column == 0, "l": column == 1, "sign": (column == 0).to(F64) - (column == 1).to(F64),
        "demo": row.is_demo, "no_demo": ~row.is_demo, "liked": r > 0.5, "disliked": r <= 0.5,
        "σ": lambda x: torch.as_tensor(x).sigmoid(),
        "slope": lambda x: x.sigmoid() * (1 - x.sigmoid()),
        "exp": torch.exp, "log": lambda x: torch.as_tensor(x, dtype=F64).log(),
        "softmax": lambda x: x.softmax(-1), "mean": lambda x: x.mean(-1, keepdim=True),
        "min": lambda x, bound: x.clamp(max=bound), "max": lambda bound, x: x.clamp(min=bound),
        "ind": _Indicator(),
        "scale": 1.0, "c": 0.0,
    }  # fmt: skip
    letters = {"beta": "β", "eta": "η", "gamma": "γ", "epsilon": "ε", "alpha": "α", "baseline": "z"}
    names |= {letters.get(name, name): value for name, value in given.items()}
    if "clip_w" in given:
        names["open"] = torch.where(column == 0, h <= given["clip_w"], h >= -given["clip_l"])
    if "explored" in given:
        names["y"] = column == given["explored"][:, None]

    def sides(name):
        value = names[name]
        names[f"{name}_w"], names[f"{name}_l"] = value[:, :1], value[:, 1:2]
        names[f"Δ{name}"] = value[:, :1] - value[:, 1:2]

    for name in "Sphr":
        sides(name)
    formula, _, where = text.partition(" where ")
    for definition in filter(None, where.split("; ")):
        name, _, value = definition.partition(" = ")
        names[name] = eval(python(value), names)
        if torch.is_tensor(names[name]) and names[name].shape[1] > 1:
            sides(name)
    return eval(python(formula), names)


def python(formula):
    for sign, code in {
        "|o|": "n", "·": "*", "−": "-", "≤": "<=", "²": "**2", "σ′": "slope",
        "1[": "ind[", "no demo": "no_demo", " ± ": " + sign*", "±": "sign*",
    }.items():  # fmt: skip
        formula = formula.replace(sign, code)
    return re.sub(r"(?<=[βη])(?=[Δhr])|(?<=2)(?=[βεur])", "*", formula)


IN_WORDS = ("rrhf", "pro", "lipo")
"""Sums over the other replies of a list, written for readers."""


@pytest.mark.parametrize("name", [name for name in PREFERENCE if name not in IN_WORDS])
def test_the_text_is_the_formula(name):
    found, parameters = coefficient(name), own_parameters(name)
    for k in {"point": [3], "pair": [2], "list": [2, 4]}[METHODS[name].arities[-1]]:
        row = made_up(name, k, "ordinary")
        given = extras(preference_loss(loss_of(name)).needs, row) | parameters
        text = evaluate(found.text, row, given)
        wanted = found.function(row, **given).detach()
        torch.testing.assert_close(text.expand_as(wanted), wanted, atol=1e-9, rtol=1e-9)


SURVEYED = {
    "sft", "raft", "rloo", "remax", "ppo", "grpo", "dpo", "ipo", "simpo", "slic", "kto", "rpo",
}  # fmt: skip


def test_no_method_of_the_survey_is_missing_and_every_text_is_one_short_line():
    texts = {name: coefficient(name).text for name in (*OFFLINE, *POLICY, *PREFERENCE)}
    assert set(texts) >= SURVEYED
    assert rpo_coefficients.TEXT not in texts.values()
    assert [name for name, text in texts.items() if "\n" in text or len(text) > 140] == []


def test_the_formulas_of_the_survey():
    assert coefficient("dpo").text == "±|o|·β·σ(−βΔh)"
    assert coefficient("simpo").text == "±β·σ(γ − βΔp)"
    grpo = "A·ρ·1[open] + coef·(π_ref/π − 1) with A = (R − mean(R of the group))/"
    assert coefficient("grpo").text == grpo + "deviation(R of the group)"
    assert coefficient("rloo").text == "|o|·A with A = R − mean(R of the other replies)"
    assert coefficient("dr_grpo").text.startswith("(|o|/L)·A·ρ·1[open] with")


def test_letters_are_explained_where_they_occur_and_nowhere_else():
    assert list(symbols("±|o|·β·σ(−βΔh)")) == ["±", "Δ", "|o|", "h", "β", "σ"]
    assert list(symbols("penalty·σ′(h_w)")) == ["w", "h", "σ′"]
    assert list(symbols("(|o|/n̄)·A·ρ_g·1[open]")) == ["|o|", "n̄", "ρ_g", "open"]
