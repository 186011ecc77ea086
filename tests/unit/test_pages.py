"""The run pages, asked over HTTP about synthetic runs: what they show."""

import asyncio
import json
import re
import time

import pytest
import yaml

from tests.unit.pages_site import PAGES, SAMPLES, asked, get, read, site, write_one_of_each
from tests.unit.synthetic_runs import small_run
from tests.unit.watched_runs import write_failure_bundle, write_finished, write_running


@pytest.fixture
def runs(tmp_path):
    """A folder with one run of each kind."""
    return write_one_of_each(tmp_path)


@pytest.mark.parametrize("run", ["finished", "running", "torn", "deep~empty", "sft"])
def test_every_page_of_every_kind_of_run_is_drawn(runs, run):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    for path, answer in zip(PAGES, asked(runs, run, PAGES), strict=True):
        assert answer.status == 200, (path, answer.text)
        assert answer.page.text.count(run.replace("~", "/")) > 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.parametrize("run", ["finished", "running", "torn"])
def test_samples_are_shown_with_all_that_belongs_to_them(runs, run):
    for path, answer in zip(SAMPLES, asked(runs, run, SAMPLES), strict=True):
        assert answer.status == 200, (path, answer.text)
        assert "when does museum 6 open?" in answer.page.text, path


def test_the_list_tells_where_every_run_stands(runs):
    page = get(runs, "/attune/").page
    for words in ("finished", "running", "torn", "deep/empty", "sft", "rloo", "30 of 30"):
        assert words in page.text
    assert page.text.index("running") < page.text.index("finished"), "what goes on comes first"


def test_a_folder_of_one_run_opens_with_that_run(tmp_path):
    write_finished(tmp_path / "alone")
    for root in (tmp_path, tmp_path / "alone"):
        page = get(root, "/attune/").page
        assert "RLOO raised the true reward" in page.text
        assert "run/alone/curves" in page.addresses


def test_the_overview_leads_with_what_was_learned_and_ends_with_fresh_replies(runs):
    page = get(runs, "/attune/run/finished/").page
    assert "RLOO raised the true reward of the policy" in page.text
    assert "step 30 of 30" in " ".join(page.text.split())
    assert "Newest replies" in page.text
    assert "when does museum 6 open?" in page.text
    assert "../../run/finished/sample?id=30-300-0" in page.addresses


def test_a_running_run_tells_what_everyone_does_now(tmp_path):
    run = write_running(tmp_path / "run")
    with (run / "telemetry" / "learner-0.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time() - 3, "phase": "update"}) + "\n")
    text = " ".join(get(run, "/attune/").page.text.split())
    assert re.search(r"learner-0 update \d", text)
    assert "engine-0 " not in text, "it has been silent for an hour"


def test_torn_files_are_named(runs):
    overview, rollouts, faults = asked(runs, "torn", ("", "rollouts", "faults"))
    assert "metrics.jsonl: 2 lines are torn" in overview.page.text
    assert "config.yaml: not YAML, line" in overview.page.text
    assert "summary.json: torn" in overview.page.text
    assert re.search(r"step=0*30.*(torn|damaged|cannot)", rollouts.page.text)
    assert "failure.json is torn" in faults.page.text


def test_faults_tell_cause_and_remedy_and_events_newest_first(runs):
    write_failure_bundle(runs / "finished")
    page = get(runs, "/attune/run/finished/faults").page
    for words in ("CUDA out of memory", "a GPU ran out", "lower the batch", "the last words"):
        assert words in page.text
    events = page.text.partition("Facts")[2]
    told = [events.index(kind) for kind in ("checkpoint_saved", "engine_replaced", "engine_lost")]
    assert told == sorted(told)
    assert "sk-1234567890abcdef12" not in page.text, "a secret of a log"


def test_settings_differ_from_another_run_by_name(runs):
    text = get(runs, "/attune/run/finished/config?with=sft").page.text
    assert "+ algorithm.name: rloo" in text
    assert "- algorithm.name: sft" in text
    assert "algorithm.kl.coef" not in text.partition("The whole configuration")[0]


def test_secrets_of_a_configuration_are_not_shown(runs):
    with (runs / "finished" / "config.yaml").open("a") as file:
        file.write("extra:\n  api_key: very-secret-word\n")
    assert "very-secret-word" not in get(runs, "/attune/run/finished/config").text


def test_up_to_five_runs_are_compared(runs):
    for number in range(4):
        small_run(runs / f"small-{number}", {"reward/total/mean": [0.1 * number, 0.5, 0.9]})
    query = "&".join(f"run=small-{n}" for n in range(4)) + "&run=finished&run=running&run=nowhere"
    page = get(runs, f"/attune/compare?{query}").page
    assert "Reward it learns from" in page.text
    assert "../attune" not in " ".join(page.addresses)
    assert page.text.count("0.00 → 0.90") == 1, "the first of them"
    assert "run/finished/" in page.addresses
    assert "run/running/" not in page.addresses, "the sixth"
    assert "The first five of 6 are shown." in page.text
    five = get(runs, f"/attune/compare?{query.partition('&run=running')[0]}").page
    assert "are shown" not in five.text


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("run/finished/sample?id=2-20-1", "id=2-20-1&"),
        ("run/finished/group?group=20&step=2&other=1", "group=20&step=2&"),
        ("run/finished/rollouts?q=of+course%26&from=1", "q=of+course%26&from=1&"),
        ("compare?run=finished&run=sft", "run=finished&run=sft&"),
        ("run/finished/", ""),
        ("", ""),
    ],
)
def test_other_colours_are_those_of_the_same_page_also_without_scripts(runs, path, kept):
    addresses = get(runs, f"/attune/{path}").page.addresses
    assert f"?{kept}theme=dark" in addresses
    sign = "&" if "?" in path else "?"
    light = get(runs, f"/attune/{path}{sign}theme=light").page.addresses
    assert f"?{kept.rstrip('&')}" in light, "as the system has them"


def test_no_part_of_a_page_is_sent_twice(runs):
    async def ask():
        async with site(runs) as client:
            first = await read(client, "/attune/run/running/")
            layout = re.search(r'data-layout="(\w+)"', first.text)[1]
            parts = re.findall(r'data-part="([\w-]+)" data-digest="(\w+)"', first.text)
            known = ",".join([layout, *(f"{name}.{digest}" for name, digest in parts)])
            nothing = await read(client, f"/attune/run/running/?known={known}")
            one = await read(client, f"/attune/run/running/?known={known.replace('tiles.', 'x.')}")
            anew = await read(client, "/attune/run/running/?known=other")
            return nothing, one, anew

    nothing, one, anew = (json.loads(answer.text) for answer in asyncio.run(ask()))
    assert nothing == {"poll": 2000, "parts": {}}
    assert list(one["parts"]) == ["tiles"]
    assert anew["anew"] is True


def test_both_replies_of_a_pair_stand_side_by_side(tmp_path):
    run = write_finished(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"pairing": "best_worst", "seed": 0}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = get(run, "/attune/run/run/group?group=20&step=2").text
    chosen, rejected = text.index('class="sample chosen"'), text.index('class="sample rejected"')
    assert "Pairs that the loss compared" in text
    assert text.index("sample 1 ·") > chosen, "the reply of the higher score"
    assert text.index("sample 0 ·") > rejected > chosen


def test_lineage_leads_from_a_sample_to_step_group_prompt_engine_and_weights(runs):
    page = get(runs, "/attune/run/finished/sample?id=2-20-1").page
    for path in (
        "step?step=2",
        "group?group=20&step=2",
        "prompt?row=6",
        "sample?id=2-20-0",
        "rollouts?engine=engine-0",
        "rollouts?version=0",
        "rollouts?version=1",
    ):
        assert f"../../run/finished/{path}" in page.addresses, path
    assert "version 00–2" in page.text, "three tokens by the older weights"
    assert "version 13–4" in page.text


def test_tokens_are_shaded_by_surprise_drift_and_advantage(runs):
    text = get(runs, "/attune/run/finished/sample?id=2-20-1").text
    shades = re.findall(r'<span class="([^"]+)" title="token (\d)', text)
    assert [css for css, _ in shades] == [
        "s1 k0 ap4 v0",  # −log p 0.1, KL 0, the largest advantage
        "s2 kp3 ap4 v0",  # 0.7, 1.0
        "s4 kn2 an3 v0",  # 2.5, −0.5, half of the largest below 0
        "s0 k0 ap4 v1",
        "s5 kp2 ap4 v1",  # 5.0, 0.25
    ]
