"""Secrets are taken out of text, settings and logs, and nothing else is."""

import logging

import pytest

from configs.load import load_config
from configs.methods import METHODS
from configs.redaction import (
    REDACTED,
    RedactingFormatter,
    is_secret_name,
    known_secrets,
    redact,
    redact_text,
    redacted_fields,
)


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "RAY_AUTH_TOKEN", "token", "WANDB_API_KEY", "db.password", "AWS_SECRET_ACCESS_KEY",
     "client-secret", "MYSQL_PWD", "private_key", "Authorization", "Cookie"],
)  # fmt: skip
def test_names_of_secrets_are_known(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["eos_token", "pad_token", "num_tokens", "max_new_tokens", "RAY_AUTH_TOKEN_PATH", "token_file",
     "api_key_env", "tokenizer", "key", "group_key", "ratio", "", "monkey", "secretary"],
)  # fmt: skip
def test_names_of_other_things_are_left_alone(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://ann:pa55word@host/x?y=1 failed", f"GET https://{REDACTED}@host/x?y=1 failed"),
        ("Authorization: Bearer abcdef123456", f"Authorization: Bearer {REDACTED}"),
        ("{'api_key': 'abc123def', 'n': 3}", f"{{'api_key': '{REDACTED}', 'n': 3}}"),
        ("HF_TOKEN=hf_AAAAAAAAAAAAAAAAAAAAAAAA x", f"HF_TOKEN={REDACTED} x"),
        ("http://h/score?token=s3cr3tvalue&n=2", f"http://h/score?token={REDACTED}&n=2"),
        ("seen sk-abcdefghijklmnopqrstuv here", f"seen {REDACTED} here"),
        ("password: hunter22222", f"password: {REDACTED}"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nend",
         f"{REDACTED}\nend"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_taken_out_and_the_rest_stays(text, expected):
    assert redact_text(text, ()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "num_tokens=120000 max_new_tokens: 1234567",
        "engine-0 differs from the learner by 0.5 nats at token 3 of probe 0",
        "eos_token: endoftext",
        "see https://docs.example.org/a@b and /work/token_path=x",
        "token=1234567",
    ],
)
def test_ordinary_lines_stay_as_they_are(text):
    assert redact_text(text, ()) == text


def test_a_value_of_the_environment_is_taken_out_wherever_it_stands():
    environment = {"MY_TOKEN": "zebra-crossing", "HOME": "/home/ann", "X_TOKEN": "short"}
    secrets = known_secrets(environment)
    assert secrets == ("zebra-crossing",)
    assert (
        redact_text("said zebra-crossing at /home/ann", secrets) == f"said {REDACTED} at /home/ann"
    )


def test_settings_lose_their_secrets_and_say_which():
    settings = {
        "reward": {"token": "abc", "url": "https://u:p@host/", "path": "/a/b", "weight": 1.0},
        "list": [{"password": "x"}, "plain"],
    }
    found = redact(settings, secrets=())
    assert found["reward"] == {
        "token": REDACTED,
        "url": f"https://{REDACTED}@host/",
        "path": "/a/b",
        "weight": 1.0,
    }
    assert redacted_fields(found) == ["reward.token", "reward.url", "list.0.password"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_setting_of_a_method_is_taken_for_a_secret(name):
    assert not redacted_fields(redact(METHODS[name].settings, secrets=()))


def test_a_whole_configuration_is_stored_as_it_is(tmp_path):
    config = load_config(
        None,
        [
            "model.path=/m",
            "data.train=/d",
            "algorithm.name=sft",
            "algorithm.num_steps=2",
            f"cluster.run_dir={tmp_path}",
        ],
    )
    assert not redacted_fields(redact(config.model_dump(mode="json"), secrets=()))


def test_log_lines_and_tracebacks_are_written_without_secrets(monkeypatch):
    monkeypatch.setenv("SERVICE_TOKEN", "0123456789abcdef")
    try:
        raise RuntimeError("got 401 with 0123456789abcdef")
    except RuntimeError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "calling %s", ("http://a:b@host/",),
            (type(error), error, error.__traceback__),
        )  # fmt: skip
    text = RedactingFormatter("%(levelname)s %(message)s").format(record)
    assert "0123456789abcdef" not in text
    assert "a:b@" not in text
    assert "Traceback" in text
    assert "got 401" in text


def test_the_folder_a_shell_works_in_is_no_password():
    environment = {
        "PWD": "/home/me/project",
        "OLDPWD": "/home/me/before",
        "DB_PWD": "correct-horse",
    }
    assert known_secrets(environment) == ("correct-horse",)
