"""All faults, in the order of the table in docs/reliability.md."""

import pictures
import stops
from injection import Fault

FAULTS: list[Fault] = [*stops.FAULTS, *pictures.FAULTS]
