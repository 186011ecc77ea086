"""One sample, one group: tokens, judgement, pairs, lineage; following one through all records."""

import json
import random
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cluster.checkpoints.manifest import MANIFEST, begin_attempt
from cluster.checkpoints.store import Store
from cluster.ledger import Ledger, LedgerRow
from cluster.rollouts.browser import RolloutBrowser
from cluster.rollouts.detail import read_sample
from cluster.rollouts.follow import follow
from cluster.rollouts.groups import read_group
from cluster.rollouts.ids import SampleId
from cluster.rollouts.lineage import weights_of
from cluster.rollouts.plain import plain
from configs.errors import ConfigError
from tests.unit.made_up_samples import (
    add_metrics,
    file_of,
    prompt_text,
    reply,
    reply_text,
    stored,
    write_run,
    write_step,
)


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run", 4)


def sample(run_dir, name):
    return read_sample(run_dir, SampleId.parse(name))


# ---- ids -----------------------------------------------------------------------------------------


def test_an_id_is_read_as_it_is_written():
    assert SampleId.parse("12-340-1") == SampleId(step=12, group_id=340, sample=1)
    assert str(SampleId(step=12, group_id=340, sample=1)) == "12-340-1"


@pytest.mark.parametrize(
    "text", ["", "12", "12-340", "1-2-3-4", "a-b-c", "-1-2-3", "1-2-3\n", "1/2/3"]
)
def test_what_is_no_id_is_refused(text):
    with pytest.raises(ConfigError, match="STEP-GROUP-SAMPLE"):
        SampleId.parse(text)


def test_ids_of_a_run_are_unique_since_a_group_is_of_one_step(run_dir):
    steps = {}
    for row in stored(run_dir):
        steps.setdefault(row["group_id"], set()).add(row["step"])
    assert all(len(found) == 1 for found in steps.values())
    ids = [(row["step"], row["group_id"], row["sample"]) for row in stored(run_dir)]
    assert len(ids) == len(set(ids))


# ---- one sample ----------------------------------------------------------------------------------


def test_a_sample_holds_every_token_with_its_numbers(run_dir):
    one = sample(run_dir, "4-6-2")
    assert (one.prompt, one.reply) == (prompt_text(0), reply_text(6, 2))
    assert one.prompt_tokens == [1, 2, 3]
    assert [token.id for token in one.tokens] == [10, 11, 12, 13]
    assert [token.rollout_logprob for token in one.tokens] == [-1, -2, -3, -4]
    assert {token.old_logprob for token in one.tokens} == {-0.75}
    assert {token.kl for token in one.tokens} == {-0.25}
    assert one.kl == -1.0
    assert one.tokens[0].advantage == pytest.approx(0.5 + one.score, abs=1e-6)
    assert one.tokens[1].advantage == pytest.approx(-0.5 + one.score, abs=1e-6)
    assert [token.version for token in one.tokens] == [1, 3, 3, 3]
    assert [token.text for token in one.tokens] == [None] * 4, "there is no tokenizer"
    assert one.rewards == {"gold": one.score / 2, "gold/polite": 2.0}
    assert (one.staleness, one.length, one.finish_reason) == (2, 4, "length")
    assert json.loads(one.extra) == {"kind": "sum"}


def test_a_sample_knows_where_it_came_from(run_dir):
    lineage = sample(run_dir, "4-7-1").lineage
    assert (lineage.engine, lineage.attempts, lineage.seed) == ("engine-1", 2, 701)
    assert (lineage.prompt_row, lineage.data_file) == (1, str(run_dir / "prompts.jsonl"))
    assert [(span.version, span.start, span.end) for span in lineage.spans] == [(2, 0, 4)]
    assert (lineage.ledger["status"], lineage.ledger["step"]) == ("used", 4)
    assert lineage.metrics["policy_version"] == 4


def test_what_was_never_computed_is_none(tmp_path):
    run_dir = write_run(tmp_path / "run", 1, model={"reference_update": "none"})
    pair = [reply(2, 5, k, source="stored", label=1.0 - k) for k in range(2)]
    write_step(run_dir, 2, [pair], has_advantages=False)
    table = pq.ParquetFile(file_of(run_dir, 2)).read()
    zeros = pa.array([[0.0] * len(row) for row in table["old_logprobs"].to_pylist()])
    at = table.schema.get_field_index("old_logprobs")
    pq.write_table(table.set_column(at, "old_logprobs", zeros), file_of(run_dir, 2))
    one = sample(run_dir, "2-5-0")
    for token in one.tokens:
        assert (token.rollout_logprob, token.old_logprob, token.ref_logprob) == (None, None, None)
        assert (token.kl, token.advantage) == (None, None)
    assert (one.advantage, one.kl, one.staleness, one.label) == (None, None, None, 1.0)
    assert one.lineage.spans[0].weights == []


def test_tokens_are_shown_as_text_where_there_is_a_tokenizer(run_dir):
    words = {"<unk>": 0, "▁yes": 10, "▁of": 11, "▁course": 12, "!": 13}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    (run_dir / "model").mkdir()
    core.save(str(run_dir / "model" / "tokenizer.json"))
    assert [t.text for t in sample(run_dir, "4-6-2").tokens] == ["yes", " of", " course", "!"]
    (run_dir / "policy").mkdir()
    (run_dir / "policy" / "tokenizer.json").write_text('{"half": ')
    assert sample(run_dir, "4-6-2").tokens[0].text == "yes", "what is torn is not used"
    words["▁no"] = words.pop("▁yes")
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.decoder = decoders.Metaspace()
    core.save(str(run_dir / "policy" / "tokenizer.json"))
    assert sample(run_dir, "4-6-2").tokens[0].text == "no", "policy/ comes first"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("9-6-0", "stored no samples of step 9"),
        ("4-1-0", "step 4 used no group 1"),
        ("4-6-7", "the samples of group 6 are 0, 1, 2"),
    ],
)
def test_a_sample_that_is_not_there_is_refused(run_dir, name, said):
    with pytest.raises(ConfigError, match=said):
        sample(run_dir, name)


def test_a_record_is_plain_json(run_dir):
    found = plain(sample(run_dir, "4-6-2"))
    assert found["lineage"]["spans"][0] == {"version": 1, "start": 0, "end": 1, "weights": []}
    assert plain({"a": float("nan"), "b": (1.0, float("inf"))}) == {"a": None, "b": [1.0, None]}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_of_a_step_that_was_run_again_the_last_metrics_count(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "policy_version": 4, "loss/policy": 7.0}\n{"step": 4, "policy')
    assert sample(run_dir, "4-6-2").lineage.metrics["loss/policy"] == 7.0
    assert sample(run_dir, "3-4-0").lineage.metrics["reward/total/mean"] == 0.25


# ---- weights -------------------------------------------------------------------------------------


def test_weights_are_named_where_they_still_are(run_dir):
    assert [weights_of(run_dir, version) for version in (0, 2, 4)] == [[], [], []]
    store = Store(run_dir / "checkpoints")
    begin_attempt(store, 0)
    for step, is_whole in ((2, True), (3, False)):
        store.write(f"step={step:06d}.attempt=1/rank=0.json", b"{}")
        if is_whole:
            store.write(f"step={step:06d}.attempt=1/{MANIFEST}", b"{}")
    assert weights_of(run_dir, 2) == [str(run_dir / "checkpoints" / "step=000002.attempt=1")]
    assert weights_of(run_dir, 3) == [], "that one was never finished"
    (run_dir / "policy").mkdir()
    (run_dir / "model").mkdir()
    assert weights_of(run_dir, 4) == [str(run_dir / "policy")], "written after the last step"
    assert weights_of(run_dir, 0) == [str(run_dir / "model")]
    # A checkpoint of before the run went back is none of its own any more.
    begin_attempt(store, 1)
    assert weights_of(run_dir, 2) == []


def test_the_policy_folder_is_of_no_version_while_a_longer_run_goes_on(run_dir):
    (run_dir / "policy").mkdir()
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["algorithm"]["num_steps"] = 9
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    assert weights_of(run_dir, 4) == weights_of(run_dir, 9) == []


# ---- one group -----------------------------------------------------------------------------------


def test_a_group_is_shown_best_first(run_dir):
    # (7*4 + 3k) % 11 / 4 - 1 for k = 0, 1, 2: 0.5, 1.25, -0.75, and 4/1024.
    group = RolloutBrowser(run_dir).group(4)
    assert (group.step, group.prompt_row, group.prompt) == (3, 4, prompt_text(4))
    assert [reply.sample for reply in group.replies] == [1, 0, 2]
    assert [reply.score - 4 / 1024 for reply in group.replies] == [1.25, 0.5, -0.75]
    assert group.replies[2].versions == [0, 2]
    assert (group.pairing, group.beats) == (None, [])
    assert group.ledger["num_samples"] == 3
    with pytest.raises(ConfigError, match="no samples of a group 99"):
        RolloutBrowser(run_dir).group(99)
    with pytest.raises(ConfigError, match="used no group 4"):
        RolloutBrowser(run_dir).group(4, step=1)


@pytest.mark.parametrize(
    ("pairing", "beats"),
    [
        ("best_worst", [(1, 2)]),
        ("all_pairs", [(1, 0), (0, 2), (1, 2)]),
        ("given", [(1, 0)]),
        # Random("0-4") draws the first of replies 0 and 2.
        ("best_vs_random", [(1, 0)]),
        ("single", []),
    ],
)
def test_pairs_say_which_reply_beat_which(tmp_path, pairing, beats):
    run_dir = write_run(tmp_path / "run", 3, data={"pairing": pairing})
    group = read_group(run_dir, 3, 4)
    assert (group.pairing, group.beats) == (pairing, beats)


def test_a_drawn_rival_is_the_one_that_the_learner_drew(tmp_path):
    run_dir = write_run(tmp_path / "run", 9, data={"pairing": "best_vs_random", "seed": 3})
    for row in stored(run_dir)[::3]:
        group_id = row["group_id"]
        group = read_group(run_dir, row["step"], group_id)
        best, *others = (reply.sample for reply in group.replies)
        drawn = random.Random(f"3-{group_id}").choice(sorted(others))
        assert group.beats == [(best, drawn)]


def test_pairs_that_were_curated_away_are_left_out(tmp_path):
    # gold/polite grows with the sample's number: it contradicts that 1 beats 2, not that 1 beats 0.
    run_dir = write_run(
        tmp_path / "run", 3, data={"pairing": "all_pairs"}, feedback={"curate_by": "gold/polite"}
    )
    assert read_group(run_dir, 3, 4).beats == [(1, 0)]


# ---- following a sample --------------------------------------------------------------------------


@pytest.mark.parametrize("is_old", [False, True])
def test_all_records_of_a_run_agree_on_every_sample(tmp_path, is_old):
    run_dir = write_run(tmp_path / "run", 3, is_old=is_old)
    followed = [
        follow(run_dir, f"{row['step']}-{row['group_id']}-{row['sample']}")
        for row in stored(run_dir)
    ]
    assert len(followed) == 18
    assert followed[0].reply == reply_text(4, 0)


def commit(run_dir, at, **changes):
    """The ledger of step `at` with its first group's row changed."""
    path = run_dir / "ledger" / f"step={at:06d}.parquet"
    rows = [LedgerRow(**row) for row in pq.ParquetFile(path).read().to_pylist()]
    rows[0] = LedgerRow(**(asdict(rows[0]) | changes))
    Ledger(run_dir).commit(at, rows)


def data_row(run_dir):
    (run_dir / "prompts.jsonl").write_text('{"prompt": "Another question"}\n' * 6)


def metrics_gone(run_dir):
    (run_dir / "metrics.jsonl").write_text("")
    add_metrics(run_dir, 1)


def fewer_samples(run_dir):
    write_step(run_dir, 2, [[reply(2, 2, k) for k in range(2)]])


def newer_than_its_step(run_dir):
    write_step(run_dir, 2, [[reply(2, 2, k, versions=(0, 2)) for k in range(3)]])
    commit(run_dir, 2, num_tokens=9, oldest_version=0, newest_version=2)


def lenient(run_dir):
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["algorithm"]["max_staleness"] = 0
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (data_row, "prompt of 2-2-0 and row 2 of"),
        (lambda run: commit(run, 2, step=3), "group 2 in the ledger and in the experience: step"),
        (lambda run: commit(run, 2, engine="engine-7"), "in the experience: engine"),
        (lambda run: commit(run, 2, oldest_version=1), "in the experience: oldest version"),
        (lambda run: commit(run, 2, status="filtered"), "in the experience: status"),
        (lambda run: commit(run, 3, group_id=2), "group 2 is 2 times in the ledger"),
        (lambda run: commit(run, 2, group_id=77), "group 2 is 0 times in the ledger"),
        (fewer_samples, "in the experience: samples: 3 here, 2 there"),
        (metrics_gone, "metrics.jsonl has no row of step 2"),
        (newer_than_its_step, "was written by"),
        (lenient, r"algorithm\.max_staleness is 0"),
    ],
)
def test_records_that_disagree_are_named(run_dir, damage, named):
    follow(run_dir, "2-2-0")
    damage(run_dir)
    with pytest.raises(AssertionError, match=named):
        follow(run_dir, "2-2-0")


def test_the_run_of_a_million_samples_is_one_whose_records_agree(tmp_path):
    from tests.bench.million import MadeUpRun

    MadeUpRun(tmp_path, 80, 5, num_prompts=64).write()
    page = RolloutBrowser(tmp_path)
    page.refresh()
    names = [f"{row['step']}-{row['group_id']}-{row['sample']}" for row in stored(tmp_path)]
    assert len(names) == len(set(names)) == 80
    for name in names[::7]:
        one = follow(tmp_path, name)
        text = "".join(token.text or "" for token in one.tokens)
        assert text.removesuffix("<|eos|>") == one.reply
