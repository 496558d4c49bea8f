"""Studies of hyperparameters: `hydra/sweeper=optuna` proposes trials, and a trial is a cell.

What Optuna is told was scored on the split that selects, never on the reported one. A study lies in
`study.db` beside its rows; the command that began it goes on with it, and takes up the trials in
which it was interrupted: what they had trained is in the store.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException

from osrm_exp import needs
from osrm_exp.compose import composed, configuration, plain
from osrm_exp.overrides import unswept
from osrm_exp.record import digest, meaning
from osrm_exp.spec import Cell
from osrm_exp.store.lock import Lock
from osrm_exp.sweeps import note_study

log = logging.getLogger("osrm_exp")
SCORES = ("merged", "single")  # what a study may be told of a cell
WHERE = ("paths", "trainer", "logger", "note", "overrides")  # what moves no score
INSTALL = 'hydra/sweeper=optuna needs its plugin: pip install "osrm-exp[sweeper]"'


def names_of(optimized: Any) -> list[str]:
    """`optimized` of a config as a list.

    Raises:
        ValueError: it names a score that there is not, or one twice.
    """
    names = [] if optimized is None else [optimized] if isinstance(optimized, str) else optimized
    if not isinstance(names, list) or set(names) - set(SCORES) or len(set(names)) < len(names):
        raise ValueError(f"optimized={optimized}: it is one or both of {', '.join(SCORES)}")
    return names


def check_scored(cell: Cell, optimized: Any) -> None:
    """Whether a cell will have the scores that a study asks for.

    Raises:
        ValueError: nothing is scored on a split that selects alone, or an expert is not ours.
    """
    names = names_of(optimized)
    if not names:
        return
    if cell.protocol.select == "validation":
        raise ValueError(
            f"optimized={optimized}: protocol={cell.protocol.name} selects on validation, the "
            "split that is reported; a study needs a split of its own: protocol=clean"
        )
    if not needs.is_searched(cell) or cell.search.objective:
        what = f"search={cell.search.name} with merge={cell.names['merge']}"
        raise ValueError(
            f"optimized={optimized}: {what} gives no mean score on {cell.protocol.select}; "
            "search=scored does (a study takes -m)"
        )
    if "single" in names and cell.given:
        task = next(iter(cell.given))
        raise ValueError(
            f"optimized={optimized}: single is the score that a fine-tuning ended with, and "
            f"{task}'s adapter is given: optimized=merged"
        )


def scores_of(rows: Sequence[Mapping[str, Any]], optimized: Any) -> float | tuple | None:
    """What a study is told of a finished cell; None where nothing is asked.

    `merged` is the mean headline of the tasks at the chosen coefficients, `single` the same of each
    task's own adapter, both on the split that selects.

    Raises:
        ValueError: the rows do not say.
    """
    experts = {row["task"]: row.get("expert_tuned_score") for row in rows}
    found = []
    for name in names_of(optimized):
        parts: list[Any] = [rows[0]["tuned_score"]] if name == "merged" else list(experts.values())
        if None in parts:
            raise ValueError(
                f"optimized={optimized}: the rows of {rows[0]['cell']} hold no {name} score on "
                "the split that selects; search=scored scores every merge"
            )
        found.append(sum(parts) / len(parts))
    return tuple(found) if len(found) > 1 else found[0] if found else None


@contextmanager
def study(overrides: Sequence[str], many: bool) -> Iterator[list[str]]:
    """Around a sweep: the overrides by which Optuna's sweeper goes on; none for another sweeper.

    Raises:
        ValueError: the plugin is missing, what is optimized does not fit the directions, another
            process is at the same study.
    """
    shared = unswept(overrides)
    sweeper = _sweeper(shared)
    if "n_trials" not in sweeper or not many:  # without -m, one of its trials
        yield []
        return
    config = configuration(shared)
    sweeper["direction"] = _directions(sweeper, config["optimized"], shared)
    name = sweeper["study_name"] or _name(config, sweeper, set(overrides) - set(shared))
    results = Path(config["paths"]["results"])
    results.mkdir(parents=True, exist_ok=True)
    sweeper["storage"] = sweeper["storage"] or f"sqlite:///{results}/study.db"
    lock = Lock(results / f".{name}.held")
    with lock.held() as mine:
        if not mine:
            raise ValueError(
                f"the study {name} in {results} is held by {lock.holder()}; hydra.sweeper.n_jobs "
                "runs its trials side by side"
            )
        found = _loaded(name, sweeper)
        note_study(results, name, overrides, sweeper["n_trials"])
        left = max(0, sweeper["n_trials"] - _taken_up(found))
        more = {"n_trials": left, "study_name": name, "storage": f"'{sweeper['storage']}'"}
        more |= {"direction": f"[{','.join(sweeper['direction'])}]"}
        try:
            yield [f"hydra.sweeper.{key}={value}" for key, value in more.items()]
        finally:
            kept = ("number", "value", "params", "state")
            found.trials_dataframe(kept).to_csv(results / f"{name}.csv", index=False)


def _sweeper(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        return plain(composed(overrides).hydra.sweeper)
    except MissingConfigException as error:
        if error.missing_cfg_file == "hydra/sweeper/optuna":
            raise ValueError(INSTALL) from None
        return {}
    except HydraException:  # which Hydra itself will say, and of which cell
        return {}


def _directions(sweeper: Mapping[str, Any], optimized: Any, typed: Sequence[str]) -> list[str]:
    """One a score: up."""
    names, given = names_of(optimized), sweeper["direction"]
    if not names:
        raise ValueError(
            "hydra/sweeper=optuna needs to be told a score: optimized=merged, or [merged,single]"
        )
    wanted = ["maximize"] * len(names)
    own = any(one.startswith("hydra.sweeper.direction") for one in typed)
    if (own or isinstance(given, list)) and given != (wanted if len(wanted) > 1 else wanted[0]):
        raise ValueError(
            f"hydra.sweeper.direction={given}: optimized={optimized} is {len(names)} of "
            f"{', '.join(SCORES)}, each better the higher it is; leave the direction out"
        )
    return wanted


def _name(config: Mapping[str, Any], sweeper: Mapping[str, Any], swept: Iterable[str]) -> str:
    """A name that two studies share only if their trials may stand side by side."""
    kept = {key: value for key, value in config.items() if key not in WHERE}
    kept |= {group: {**kept[group], "path": None} for group in ("model", "dataset")}
    said = [meaning(kept), sweeper["params"], sweeper["search_space"], sorted(swept)]
    return f"study-{digest(said)[:8]}"


def _loaded(name: str, sweeper: Mapping[str, Any]) -> Any:
    import optuna  # a second, for studies alone

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=name,
        storage=sweeper["storage"],
        directions=sweeper["direction"],
        load_if_exists=True,
    )


def _taken_up(found: Any) -> int:
    """How many trials are complete. Those in which a process ended are proposed again, first."""
    from optuna.trial import TrialState

    trials = found.get_trials(deepcopy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # enqueue_trial calls itself experimental
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                found.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    found.enqueue_trial(trial.params)
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    if trials:
        log.info("%s goes on: %d trials are complete", found.study_name, complete)
    return complete
