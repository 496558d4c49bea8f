"""What a PEFT LoRA config says of its factors: fields known to be harmless pass, no others do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from osrm_exp.hub import first_line

# whatever these say, the update of a module is B A, times a scaling
HARMLESS = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "target_modules exclude_modules layers_to_transform layers_pattern lora_dropout eva_config "
    "fan_in_fan_out megatron_core qalora_group_size runtime_config ensure_weight_tying "
    "r lora_alpha use_rslora rank_pattern alpha_pattern init_lora_weights modules_to_save".split()
)
OFF: tuple[Any, ...] = (None, False, {}, [], set(), "")
STARTS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")  # the base stays as is
HEAD = re.compile(r"classif|score|pooler|(?<!lm_)head|qa_outputs|summary|logits|regress")
LONGEST = 200  # characters of a module's name: more is no model, and a pattern's cost grows with it


@dataclass(frozen=True)
class LoraFields:
    """The ranks and scalings of an adapter's modules; honours patterns and rsLoRA as PEFT does."""

    where: str  # of errors
    r: int
    alpha: float
    rslora: bool
    ranks: Mapping[re.Pattern, int]
    alphas: Mapping[re.Pattern, float]
    base: str | None  # base_model_name_or_path
    task_type: str | None  # as PEFT names it
    saved: tuple[str, ...] | None  # modules_to_save; None: the config does not say

    def rank(self, module: str) -> int:
        return self._named(self.ranks, module, self.r)

    def scaling(self, module: str) -> float:
        """What B A is multiplied by."""
        rank = self.rank(module)
        alpha = self._named(self.alphas, module, self.alpha)
        return alpha / sqrt(rank) if self.rslora else alpha / rank

    def _named(self, patterns: Mapping[re.Pattern, Any], module: str, otherwise: Any) -> Any:
        if patterns and len(module) > LONGEST:
            raise ValueError(f"{self.where}: a module's name has {len(module)} characters")
        return next((value for key, value in patterns.items() if key.match(module)), otherwise)


def read_fields(folder: Path) -> LoraFields:
    """The fields of `adapter_config.json`.

    Raises:
        ValueError: no such file or no JSON object in it, and whatever `checked` refuses.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ValueError(f"{folder} is not a PEFT adapter: it holds no adapter_config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, not the fields of an adapter")
    return checked(config, str(folder))


def checked(config: Mapping[str, Any], where: str) -> LoraFields:
    """A LoRA config whose update is known to be `B A` alone.

    Args:
        config: by field; one that is absent stands at PEFT's default.
        where: the adapter's path or name, for errors.

    Raises:
        ValueError: another kind of adapter, a field away from its default that is not known to be
            harmless, or a rank, scaling or pattern that is none.
    """
    if (kind := config.get("peft_type")) != "LORA":
        raise ValueError(f"{where} is a {_short(kind)} adapter; only LORA can be merged")
    _check_start(config.get("init_lora_weights", True), where)
    _check_harmless(config, where)
    rslora, base = config.get("use_rslora"), config.get("base_model_name_or_path")
    if rslora not in (None, True, False):
        raise ValueError(f"{where}: use_rslora={_short(rslora)} is neither true nor false")
    return LoraFields(
        where=where, rslora=bool(rslora), base=base if _is_name(base) else None,
        task_type=kind if _is_name(kind := config.get("task_type")) else None,
        saved=_saved(config.get("modules_to_save"), where),
        r=_rank("r", config.get("r", 8), where),
        alpha=_alpha("lora_alpha", config.get("lora_alpha", 8), where),
        ranks=_by_pattern("rank_pattern", _rank, config, where),
        alphas=_by_pattern("alpha_pattern", _alpha, config, where),
    )  # fmt: skip


def _check_harmless(config: Mapping[str, Any], where: str) -> None:
    for field, value in config.items():
        off = (field, value) == ("bias", "none") or any(
            value == one and type(value) is type(one)
            for one in OFF  # 0 is a number, not False
        )
        if field not in HARMLESS and not off:
            raise ValueError(
                f"{where}: {_short(f'{field}={value!r}')} is not known to leave B A the whole "
                "update; train a plain LoRA without it, or fold the adapter into its base model "
                "with PEFT's merge_and_unload()"
            )


def _saved(saved: Any, where: str) -> tuple[str, ...] | None:
    """The modules that are saved whole: heads alone."""
    if saved is None:
        return None
    if not (isinstance(saved, Collection) and all(map(_is_name, saved))):
        raise ValueError(f"{where}: modules_to_save={_short(saved)} is no list of names")
    if others := [name for name in saved if not HEAD.search(name)]:
        raise ValueError(
            f"{where}: modules_to_save holds {_short(others[0])}, which is no task's head but part "
            "of the base model, and merging B A would lose it; train a plain LoRA without it"
        )
    return tuple(saved)


def _check_start(start: Any, where: str) -> None:
    kind = str(start).lower()
    if kind.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ValueError(
            f"{where}: init_lora_weights={_short(start)} moves the base weights at the start, so "
            "that B A is not the update; convert it with PEFT's save_pretrained(OUT, "
            "path_initial_model_for_weight_conversion=INITIAL_ADAPTER) (of LoftQ, whose base is "
            "quantized, only a checkpoint by merge_and_unload() is exact)"
        )
    if kind not in STARTS:
        raise ValueError(
            f"{where}: init_lora_weights={_short(start)} is not known to leave the base weights "
            f"alone; known are: {', '.join(STARTS)}"
        )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _rank(name: str, value: Any, where: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{where}: {name}={_short(value)} is no rank: it must be 1 or more")
    return value


def _alpha(name: str, value: Any, where: str) -> float:
    if type(value) not in (int, float) or not -1e9 < value < 1e9:
        raise ValueError(f"{where}: {name}={_short(value)} is no scaling: give a finite number")
    return float(value)


def _by_pattern(
    field: str, number: Callable[[str, Any, str], Any], config: Mapping[str, Any], where: str
) -> dict[re.Pattern, Any]:
    patterns = {} if config.get(field) is None else config[field]
    if not isinstance(patterns, Mapping):
        raise ValueError(f"{where}: {field} is a {type(patterns).__name__}, not numbers by module")
    return {
        _pattern(field, key, where): number(f"{field}, {_short(key)}", value, where)
        for key, value in patterns.items()
    }


def _pattern(field: str, key: str, where: str) -> re.Pattern:
    """A key as PEFT matches it (`peft.utils.other.get_pattern_key`)."""
    if not _is_quick(key):
        raise ValueError(
            f"{where}: {field} holds {_short(key)}, a pattern that may search for ever; name the "
            "modules one by one"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{where}: {field} holds {_short(key)}, which is no pattern: {first_line(error)}"
        ) from None


def _is_quick(pattern: str) -> bool:
    """Whether a search takes few steps: nothing repeated is a group, and choices are few."""
    plain = re.sub(r"\\.|\[[^]]*\]", "x", pattern)
    repeats = len(re.findall(r"[*+{]", plain))
    choices = len(re.findall(r"[(]|(?<![(*+}])\?", plain)) + repeats
    few = repeats <= 3 and choices <= 4 and len(pattern) <= LONGEST
    return not re.search(r"\)[*+{]|\(\?(?!:)", plain) and (few or choices == 0)


def _short(value: Any) -> str:
    """One line of at most 80 characters."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
