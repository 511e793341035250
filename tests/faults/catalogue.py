"""All faults, in the order of the table in docs/reliability.md."""

import pictures
import stops
import strangers
from injection import Fault

FAULTS: list[Fault] = [*stops.FAULTS, *pictures.FAULTS, *strangers.FAULTS]
