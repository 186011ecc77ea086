"""Which engine a prompt belongs to: spread evenly, and moved only by who comes or goes."""

from collections import Counter

from cluster.fleet import affinity

PROMPTS = [[seed, seed // 7, 3 * seed] for seed in range(3000)]


def owner(tokens: list[int], engines: list[str]) -> str:
    return max(engines, key=lambda engine: affinity(tokens, engine))


def test_prompts_are_spread_over_all_engines():
    for count in (2, 3, 5, 8):
        engines = [f"engine-{number}" for number in range(count)]
        share = Counter(owner(tokens, engines) for tokens in PROMPTS)
        assert set(share) == set(engines)
        assert max(share.values()) < 2 * len(PROMPTS) / count
        assert min(share.values()) > len(PROMPTS) / count / 2


def test_an_engine_that_leaves_moves_its_own_prompts_alone():
    engines = [f"engine-{number}" for number in range(5)]
    left = [engine for engine in engines if engine != "engine-2"]
    for tokens in PROMPTS:
        before = owner(tokens, engines)
        if before != "engine-2":
            assert owner(tokens, left) == before
