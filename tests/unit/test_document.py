from pathlib import Path

from configs.document import document
from configs.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
LINES = document().splitlines()


def test_the_page_in_docs_is_the_one_the_schema_makes():
    remedy = "run `python -m configs.document > docs/configuration.md`"
    assert PAGE.read_text(encoding="utf-8") == document(), remedy


def test_a_setting_shows_bounds_null_default_and_meaning():
    row = (
        "| `dual_clip` | number > 1 or `null` | `null` | Bound on the loss of a token with "
        "negative advantage, as a multiple of it. |"
    )
    assert row in LINES
    assert "| `betas` | list of 2: number ≥ 0 and < 1 | `[0.9, 0.95]` |  |" in LINES
    assert "| `dtype` | `float32`, `bfloat16` | `float32` | Of forward passes," in document()
    assert any(line.startswith("| `train` | text | required | ") for line in LINES)


def test_a_section_that_is_used_twice_stands_under_both_names():
    assert LINES.count("### `cluster.reward`, `cluster.reference`") == 1
    assert "### `algorithm.optimizer`, `algorithm.critic_optimizer`" in LINES
    assert "### `feedback.rewards.NAME`" in LINES


def test_every_method_has_its_defaults():
    rows = [
        line
        for line in LINES
        if line.startswith(tuple(f"| `{name}` | {m.line} |" for name, m in METHODS.items()))
    ]
    assert len(rows) == len(METHODS)
    assert any(
        "`algorithm.clip_low=null`" in row and "`algorithm.kl.coef=0.03`" in row for row in rows
    )


def test_tables_have_four_columns_throughout():
    rows = [line for line in LINES if line.startswith("| `") and not line.startswith("| `algo")]
    tables = rows[: -len(METHODS)]
    assert len(tables) > 80
    assert all(line.replace("\\|", "").count("|") == 5 for line in tables)
