"""The colours of the pages' style sheet: words stay readable over them, by light and dark."""

import re
from itertools import pairwise

import pytest

from cluster.pages.static import files

LEAST = 4.5
"""Contrast that WCAG asks of words at level AA."""


@pytest.fixture(scope="module")
def css():
    return files()["pages.css"][1].decode()


def variables(css, theme):
    """Name -> value, as the last rule for the theme sets it."""
    rules = re.findall(r"^:root \{(.*?)\}", css, re.M | re.S)
    if theme == "dark":
        rules += re.findall(r"^:root\[data-theme=\"dark\"\] \{(.*?)\}", css, re.M | re.S)
    return {
        name: value for rule in rules for name, value in re.findall(r"--([\w-]+): ([^;]+);", rule)
    }


def shades(css, theme):
    """Class of a shade -> its colour on a card."""
    known = variables(css, theme)
    rules = re.findall(
        r"\.tokens \.(\w+), [^{]+\{ background: "
        r"color-mix\(in srgb, var\(--(\w+)\) (?:var\(--(\w+)\)|(\d+%)), transparent\); \}",
        css,
    )
    found = {}
    for name, color, share, fixed in rules:
        part = float((fixed or known[share]).rstrip("%")) / 100
        over, under = rgb(known[color]), rgb(known["card"])
        found[name] = [part * a + (1 - part) * b for a, b in zip(over, under, strict=True)]
    return found, rgb(known["text"])


def rgb(text):
    """
    >>> rgb("#fff")
    [255, 255, 255]
    """
    digits = text.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def luminance(color):
    parts = [c / 255 for c in color]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read_over_every_shade_of_a_token(css, theme):
    found, text = shades(css, theme)
    assert len(found) == 5 + 2 * 8 + 8, "surprise, KL and advantage on both sides, versions"
    worst = {name: round(contrast(color, text), 2) for name, color in found.items()}
    assert {name: value for name, value in worst.items() if value < LEAST} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_stronger_shade_is_further_from_the_card(css, theme):
    found, _ = shades(css, theme)
    card = rgb(variables(css, theme)["card"])
    for names in (
        [f"s{level}" for level in range(1, 6)],
        *([f"{key}{level}" for level in range(1, 5)] for key in ("kp", "kn", "ap", "an")),
    ):
        away = [sum(abs(a - b) for a, b in zip(found[n], card, strict=True)) for n in names]
        assert all(b - a > 10 for a, b in pairwise([0, *away])), names
