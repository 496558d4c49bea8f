"""Searched merges: family x objective x optimiser.

A *family* says what is free (`Coefficients` that scale updates before any rule, a `Fusion` of
methods or `Candidates` by layer, an `Integration` of layers, `Surgery`, `Gates`; null: the merge's
own settings), an *objective* what a candidate is judged by on which rows (`Entropy`, `Loss`,
`Representation`; null: the mean headline), an *optimiser* which candidates there are. All that an
optimiser sees is a `problem.Problem`; what it found is kept in the store, as `spec.Searched`.

`conf/search/` holds what goes with any merge; a method that is its search, as AdaMerging, has it in
its own `conf/merge/` file, under the key `search`.
"""

from osrm_exp.search.candidates import Candidates as Candidates
from osrm_exp.search.coefficients import Coefficients as Coefficients
from osrm_exp.search.distillation import prodistill as prodistill
from osrm_exp.search.evolution import cmaes as cmaes
from osrm_exp.search.evolution import nevergrad as nevergrad
from osrm_exp.search.fusion import Fusion as Fusion
from osrm_exp.search.gates import Gates as Gates
from osrm_exp.search.gradient import adam as adam
from osrm_exp.search.grid import grid as grid
from osrm_exp.search.grid import scored as scored
from osrm_exp.search.integration import Integration as Integration
from osrm_exp.search.objectives import Blocks as Blocks
from osrm_exp.search.objectives import Entropy as Entropy
from osrm_exp.search.objectives import Loss as Loss
from osrm_exp.search.objectives import Representation as Representation
from osrm_exp.search.optuna import optuna as optuna
from osrm_exp.search.ppo import ppo as ppo
from osrm_exp.search.smac import smac as smac
from osrm_exp.search.surgery import Surgery as Surgery
