"""A run's inputs, checked and read before any process starts: folders, tokenizers, data, judges.

Whatever is wrong with them is the user's to mend and is refused here in one line.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.judges.inputs import check_labels, check_one_logit, num_labels, read_layout
from actors.reward import load_function
from cluster.checkpoints.store import check_storage
from cluster.files import replace_text
from cluster.loggers.checks import check_loggers
from cluster.run_folder import check_begun, stored_text
from configs.errors import ConfigError, naming
from configs.machine import (
    COMPILER_REMEDY,
    available_cores,
    available_memory,
    cpp_compiler,
    smallest_gpu,
)
from configs.plan import derive
from configs.schema import OFFLINE, MixtureConfig, RewardConfig, RunConfig
from rl.data.encode import (
    load_demonstrations,
    load_pairs,
    load_prompts,
    load_replies,
    split_validation,
)
from rl.data.layouts import detect
from rl.data.rows import read_rows as rows_of
from rl.folders import check_model_folder, context_length, load_tokenizer
from rl.types import PreferencePair, ScoredReplies

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything a run needs that is small enough to hold in the driver."""

    pad_token_id: int
    train: list[Any]
    """Prompts, demonstrations or pairs."""
    validation: list[Any]


def read_inputs(config: RunConfig) -> Inputs:
    """Check and read all inputs; raises `ValueError` with one line."""
    check_models(config)
    check_storage(config.cluster.checkpoint)
    check_loggers(config)
    tokenizer = load_tokenizer(config.model.path)
    with naming("data.train"):
        train = read_rows(config, config.data.train, tokenizer)
    if config.data.validation:
        with naming("data.validation"):
            validation = _read_validation(config, config.data.validation, tokenizer)
    else:
        train, validation = split_validation(
            train, config.data.validation_fraction, config.data.seed
        )
    if config.feedback.mixture is not None:
        annotators([*train, *validation], config.feedback.mixture)
    pad_token_id = tokenizer.pad_token_id
    assert isinstance(pad_token_id, int)
    return Inputs(pad_token_id=pad_token_id, train=train, validation=validation)


def check_models(config: RunConfig) -> None:
    """Refuse incomplete model folders, judges that cannot be loaded, and plans that do not fit."""
    model_config = check_model_folder(config.model.path, field="model.path")
    longest = context_length(model_config)
    if config.model.max_length > longest:
        raise ConfigError(
            f"model.max_length is {config.model.max_length}, but {config.model.path} was made for "
            f"{longest} tokens; lower it"
        )
    for field, path in (
        ("model.reference", config.model.reference),
        *(("model.extra_references", path) for path in config.model.extra_references),
        ("model.critic", config.model.critic),
    ):
        if path:
            check_model_folder(path, field=field)
    check_judges(config)
    cluster = config.cluster
    is_here = cluster.device == "cpu" and cluster.address is None
    if is_here and config.algorithm.name not in OFFLINE and not cpp_compiler():
        raise ConfigError(f"no C++ compiler on this machine: {COMPILER_REMEDY}")
    plan = derive(
        config,
        model_config,
        available_memory(),
        cores=available_cores(),
        one_gpu_gib=smallest_gpu() if cluster.address is None else None,
    )
    if plan.refusal:
        raise ConfigError(plan.refusal)


def check_judges(config: RunConfig) -> None:
    """Refuse rewards that cannot be judged: by a service where the run names one, else here."""
    if config.feedback.service is not None:
        from cluster.serve.client import check_service  # loads an HTTP client, for these runs alone

        check_service(config)
        _check_critic(config)
        return
    for name, reward in config.feedback.rewards.items():
        check_reward(f"feedback.rewards.{name}", reward)


def _check_critic(config: RunConfig) -> None:
    """A critic that starts from a reward model needs its folder, whoever judges by it."""
    if config.algorithm.advantage != "gae" or config.model.critic is not None:
        return
    for name, reward in config.feedback.rewards.items():
        if reward.kind == "model":
            assert reward.path is not None
            check_model_folder(reward.path, field=f"feedback.rewards.{name}.path")
            return


def check_reward(field: str, reward: RewardConfig) -> None:
    """Refuse a reward whose files a judge cannot be made of."""
    path = f"{field}.path"
    if reward.prompt_file:
        read_layout(reward.prompt_file)
    match reward.kind:
        case "function":
            assert reward.path is not None
            with naming(path):
                load_function(reward.path)
        case "model":
            assert reward.path is not None
            _check_conversation_model(path, reward.path)
        case "ensemble":
            for index, folder in enumerate(reward.paths):
                _check_conversation_model(f"{field}.paths.{index}", folder)
        case "implicit":
            assert reward.path is not None
            assert reward.reference is not None
            own = _check_conversation_model(path, reward.path)
            other = check_model_folder(reward.reference, field=f"{field}.reference")
            if own.get("vocab_size") != other.get("vocab_size"):
                raise ConfigError(
                    f"{field}.reference: {reward.reference} has another vocabulary than "
                    f"{reward.path}; give the folder that it was trained from"
                )
        case "classifier":
            assert reward.path is not None
            assert reward.positive is not None
            labels = num_labels(check_model_folder(reward.path, field=path))
            check_labels(path, reward.path, labels, reward.positive)
        case "ranker":
            assert reward.path is not None
            labels = num_labels(check_model_folder(reward.path, field=path))
            check_one_logit(path, reward.path, labels)
        case "llm_judge":
            assert reward.path is not None
            context_length(check_model_folder(reward.path, field=path))


def _check_conversation_model(field: str, path: str) -> dict[str, Any]:
    """The config.json of a model that reads prompt and reply as a policy does."""
    model_config = check_model_folder(path, field=field)
    load_tokenizer(path, field=field)
    return model_config


def read_rows(config: RunConfig, path: str, tokenizer: Any) -> list[Any]:
    """Read a data file as what the algorithm learns from: demonstrations, pairs or prompts."""
    data, max_length = config.data, config.model.max_length
    shared: dict[str, Any] = {"overlong": data.overlong, "system_prompt": data.system_prompt}
    if config.algorithm.name == "sft":
        return load_demonstrations(path, tokenizer, max_length=max_length, **shared)
    if config.algorithm.name == "reward_model":
        return load_pairs(path, tokenizer, max_length=max_length, **shared)
    if data.source in ("stored", "policy+stored"):
        items = load_replies(path, tokenizer, max_length=max_length, **shared)
        _check_arity(config, path, items[0])
        return list(items)
    longest = data.max_prompt_length or max_length - data.sampling.max_new_tokens
    return load_prompts(path, tokenizer, max_prompt_length=longest, **shared)


def annotators(pairs: Sequence[PreferencePair], settings: MixtureConfig) -> list[str]:
    """Who judged, in order; raises `ValueError` where the column is missing or too few did."""
    for pair in pairs:
        if pair.prompt.extra.get(settings.annotator) in (None, ""):
            raise ValueError(
                f"row {pair.prompt.row}: there is no {settings.annotator} "
                "(feedback.mixture.annotator), which should say who judged the pair"
            )
    names = sorted({annotator_of(pair, settings) for pair in pairs})
    if len(names) < settings.num_models:
        raise ValueError(
            f"feedback.mixture.num_models={settings.num_models}, but the column "
            f"{settings.annotator} names {len(names)} annotators: ask for fewer models"
        )
    return names


def annotator_of(pair: PreferencePair, settings: MixtureConfig) -> str:
    """Who judged a pair."""
    return str(pair.prompt.extra[settings.annotator])


def _read_validation(config: RunConfig, path: str, tokenizer: Any) -> list[Any]:
    """Held-out rows; those of a run that answers them afresh may be prompts alone."""
    if config.algorithm.name not in OFFLINE and detect(rows_of(path)[0]).kind == "prompts":
        data = config.data.model_copy(update={"source": "policy"})
        config = config.model_copy(update={"data": data})
    return read_rows(config, path, tokenizer)


def _check_arity(config: RunConfig, path: str, item: Any) -> None:
    """A loss on pairs or lists needs rows with two replies or more."""
    pairing = config.data.pairing
    if pairing == "single" or isinstance(item, PreferencePair):
        return
    if isinstance(item, ScoredReplies):
        if pairing != "given":
            return
        raise ConfigError(
            f"{path} holds lists, of which data.pairing=given takes the first two alone: use "
            "best_worst, all_pairs or best_vs_random"
        )
    raise ConfigError(
        f"{path} holds one reply to a prompt, but algorithm.name={config.algorithm.name} compares "
        "two: give pairs (`chosen` and `rejected`), or use kto or ulma"
    )


def prepare_run_dir(config: RunConfig, *, resume: bool) -> Path:
    """Create the run folder with its config.yaml, or find the one to resume.

    Refuses a folder that cannot be written, that already holds a run (unless resuming), or one
    that began with other settings (when resuming). Resuming where there is no run begins one, so
    that a job that is submitted again needs no other command.
    """
    folder = Path(config.cluster.run_dir)
    check_begun(config, resume=resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "config.yaml", stored_text(config))
    except OSError as error:
        raise ConfigError(
            f"cluster.run_dir: {folder} cannot be written ({error.strerror}); give another folder"
        ) from error
    return folder
