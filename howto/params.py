"""params.yaml as a whole: every section is checked before any stage starts its work.

A section of another stage can stop a stage, but it never changes an output. So this module is the only one that a stage
imports and that dvc.yaml does not name.
"""

from pathlib import Path

from howto.core.config import Params, read_sections
from howto.core.paths import PARAMS
from howto.data.config import Prepare, ProfilePrepare
from howto.evaluation.config import Evaluate
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.sources.config import Data, Model
from howto.training.config import ProfileTrain, Train

SECTIONS = (
    Machine,
    ProfileMachine,
    Model,
    Data,
    Prepare,
    ProfilePrepare,
    Train,
    ProfileTrain,
    Infer,
    ProfileInfer,
    Evaluate,
)


def read_params(path: Path = PARAMS) -> Params:
    """Read and check the whole file.

    Raise UserError if the file is missing or not YAML, or a key is unknown, missing, of the wrong type or out of range.
    The message names file, line and key.
    """
    return read_sections(path, SECTIONS)
