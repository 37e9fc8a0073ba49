"""Types of the arrays that have one entry for each row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Codes = NDArray[np.uint8]  # the split of each row
RowNumbers = NDArray[np.int64]  # another row for each row; -1: none
Arrays = dict[str, NDArray[Any]]  # several values for each row, by name
