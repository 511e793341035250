"""What can go wrong in a way that the user can mend.

    SelfieError                exit 1: one line that says what to do next
    ├── UsageError             exit 2: options that contradict each other or cannot be honoured
    ├── DataError              images or labels that are missing, empty or unreadable
    │   ├── UnreadableImage    one image; skipped, counted and listed by whoever reads many
    │   └── Unlabelled         images without labels, where labels are needed
    ├── RunError               a run folder that is occupied, unfinished, damaged or of the wrong kind
    ├── WeightsError           weights that are not ours, or do not fit the network they are meant for
    ├── HubError               a repository on the Hub that cannot be found, reached, read or written
    ├── TrainingError          a training that cannot go on: memory does not suffice
    │   └── Diverged           a loss, a gradient or a weight is not a finite number
    ├── NothingLeft            exit 0: all that was asked for is done already
    └── Stopped                exit 129, 130 or 143: a signal asked us to stop, and the state is saved

Anything else that is raised is a bug and shows its traceback.
"""


class SelfieError(Exception):
    """An error whose message tells the user what to do next; shown as one line, without a traceback."""

    exit_code = 1


class UsageError(SelfieError):
    exit_code = 2


class DataError(SelfieError):
    pass


class UnreadableImage(DataError):
    pass


class Unlabelled(DataError):
    pass


class RunError(SelfieError):
    pass


class WeightsError(SelfieError):
    pass


class HubError(SelfieError):
    pass


class TrainingError(SelfieError):
    pass


class Diverged(TrainingError):
    pass


class NothingLeft(SelfieError):
    exit_code = 0


class Stopped(SelfieError):
    """Raised after a signal, once the state is on disk."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "MPS backend out of memory",
    "CUDA out of memory",  # wrapped in an error of the compiler
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN
    "failed to map segment",  # of a library that is loaded
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory has run out, for which CPUs, MPS and cuBLAS have no exception of their own."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch may not be loaded
    return known or any(words in str(error) for words in OUT_OF_MEMORY)
