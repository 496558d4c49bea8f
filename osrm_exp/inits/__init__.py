"""How `A` starts: pure functions, and OSRM for any PEFT model."""

from osrm_exp.inits.data_free import gaussian as gaussian
from osrm_exp.inits.data_free import kaiming as kaiming
from osrm_exp.inits.data_free import last_coordinates as last_coordinates
from osrm_exp.inits.data_free import orthonormal as orthonormal
from osrm_exp.inits.functions import contrastive as contrastive
from osrm_exp.inits.functions import lora_null as lora_null
from osrm_exp.inits.functions import osrm as osrm
from osrm_exp.inits.functions import osrm_largest as osrm_largest
from osrm_exp.inits.functions import osrm_own as osrm_own
from osrm_exp.inits.functions import osrm_released as osrm_released
from osrm_exp.inits.functions import own_largest as own_largest
from osrm_exp.inits.functions import row_norm as row_norm
