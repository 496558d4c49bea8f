#!/usr/bin/env bash
# The main part of PLAN.md, seed by seed: every cell of a seed before the next seed begins. What is
# done is skipped, so the same command goes on after an interruption.
#
#   results/verdict/run.sh DIR SEED...        DIR holds the suite `text`; MORE=paths.store=… is passed on
#   ARMS=gaussian MORE="paths.results=results/verdict/secondary" results/verdict/run.sh DIR SEED...
#   EXPERIMENT=verdict/replication results/verdict/run.sh DIR SEED...      DIR holds the suite `glue`
set -euo pipefail
suite=${1:?usage: run.sh DIR SEED...}
arms=init=${ARMS:-kaiming,orthonormal_tied,osrm}
own="merge.statistics.gram.samples=100"
for seed in "${@:2}"; do
  cells() { python -m osrm_exp +experiment=${EXPERIMENT:-verdict/main} "dataset.path=$suite" "seed=$seed" ${MORE:-} "$@" -m; }
  cells $arms merge=individual diagnostics=layers diagnostics.statistics.grams.samples=200
  cells $arms merge=pretrained,average
  cells $arms merge=task_arithmetic search=grid search.widen=true 'merge.grid={scaling: [0.1, 0.2, 0.3, 0.4, 0.6, 0.8]}'
  cells $arms merge=ties search=grid search.widen=true 'merge.grid={scaling: [0.4, 0.8, 1.2, 1.6, 2.0]}'
  cells $arms merge=regmean $own
  cells init=head_only merge=individual
  cells $arms merge=regmean $own heads=head_only
done
