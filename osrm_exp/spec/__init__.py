"""What a cell is made of: frozen records and their digests.

Nothing here imports torch, so a finished sweep is recognised in a second. `compose` makes them.
"""

from osrm_exp.spec.cell import Arm as Arm
from osrm_exp.spec.cell import Cell as Cell
from osrm_exp.spec.cell import Protocol as Protocol
from osrm_exp.spec.methods import Called as Called
from osrm_exp.spec.methods import Init as Init
from osrm_exp.spec.methods import Merge as Merge
from osrm_exp.spec.methods import Need as Need
from osrm_exp.spec.methods import Objective as Objective
from osrm_exp.spec.methods import Search as Search
from osrm_exp.spec.searched import Searched as Searched
from osrm_exp.spec.stages import FineTune as FineTune
from osrm_exp.spec.stages import Given as Given
from osrm_exp.spec.stages import Statistic as Statistic
from osrm_exp.spec.subject import Lora as Lora
from osrm_exp.spec.subject import Model as Model
from osrm_exp.spec.subject import Rows as Rows
from osrm_exp.spec.subject import Task as Task
from osrm_exp.spec.subject import Tuning as Tuning
