"""Errors that a user can fix; anything else that is raised is a bug and shows its traceback.

SelfieError                exit 1: one line that says what to do next
├── UsageError             exit 2: options that contradict each other or cannot be honoured
├── DataError              images or labels that are missing, empty or unreadable
│   ├── UnreadableImage    one image; readers of many images skip, count and list it
│   └── Unlabelled         images without labels where labels are needed
├── RunError               a run folder that is in use, unfinished, damaged or of the wrong kind
├── WeightsError           weights in an unknown format, or that do not fit the network
├── HubError               a repository on the Hub that cannot be found, reached, read or written
├── TrainingError          a training that cannot continue, for lack of memory
│   └── Diverged           a loss, a gradient or a weight is not finite
└── Stopped                exit 129, 130 or 143: stopped by a signal, with the state saved
"""


class SelfieError(Exception):
    """An error whose message tells the user what to do next; shown as one line, without a traceback."""

    exit_code = 1


class UsageError(SelfieError):
    exit_code = 2


class DataError(SelfieError): ...


class UnreadableImage(DataError): ...


class Unlabelled(DataError): ...


class RunError(SelfieError): ...


class WeightsError(SelfieError): ...


class HubError(SelfieError): ...


class TrainingError(SelfieError): ...


class Diverged(TrainingError): ...


class Stopped(SelfieError):
    """Raised after a signal, once the state is on disk."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: Exception) -> str:
    """Return the message of another library's error as one line."""
    return " ".join(str(getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "out of memory",  # CUDA, its driver, Triton and MPS, also within an error of torch's compiler
    "_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
    "could not create a primitive",  # oneDNN
    "failed to map segment",  # while a library is loaded
)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory. In torch, only CUDA's allocator has an exception type for it."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch may not be loaded
    return known or any(words in str(error) for words in OUT_OF_MEMORY)
