"""params.yaml as a whole: every section is checked before any stage starts its work.

A section of another stage can stop a stage, but it never changes an output. So this module is the only one that a stage
imports and that dvc.yaml does not name.
"""

from pathlib import Path

from howto.core.config import Params, read_sections
from howto.core.errors import UserError
from howto.core.paths import PARAMS
from howto.data.config import Prepare, ProfilePrepare, prepare_settings
from howto.evaluation.config import Evaluate
from howto.general.config import General
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.sources.config import Data, Model
from howto.training.config import ProfileTrain, Train, train_settings

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
    General,
    Evaluate,
)


def read_params(path: Path = PARAMS) -> Params:
    """Read and check the whole file.

    Raise UserError if the file is missing or not YAML, a key is unknown, missing, of the wrong type or out of range, or
    sections of the active profile contradict each other. The message names file and key, and mostly the line.
    """
    params = read_sections(path, SECTIONS)
    check_overrides(params)
    return params


def check_overrides(params: Params) -> None:
    """Raise UserError if overrides of the active profile contradict shared sections, or leave no row to be scored."""
    train_settings(params)
    split = prepare_settings(params).split
    if split.test == 0 and not params.section(Data).test_source:
        raise UserError(
            f"{params.path}: prepare.split.test with the profile's own prepare: 0 leaves no row to be scored. Raise "
            f"it, or name held-out rows in profiles.{params.profile}.data.test_source."
        )
