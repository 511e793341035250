"""One step of training: the same maths however it is computed, and no waiting for the device on the way."""

import copy
import math

import pytest
import torch
from listening import Listener
from shared_batch import BATCH, NAMES, batch_of, make_step, module_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfie_cli.errors import TrainingError
from selfie_cli.training.distributed import Group
from selfie_cli.training.optimizers import make_optimizer
from selfie_cli.training.step import undone
from tests.methods.small_methods import METHODS, make_task

STEPS = 20
# The learning rate; how far the loss falls at least; how far compiled and bf16 losses may lie from it at any step.
CURVES = {
    "selfie": (0.03, 0.003, 1e-4, 2e-3),
    "many-view selfie": (0.005, 1.0, 1e-3, 0.25),
    "simclr": (0.01, 0.8, 1e-4, 0.25),
    "byol": (0.01, 2.5, 1e-4, 0.25),
    "supervised": (0.1, 0.25, 1e-4, 2e-3),
}


def shallow(task):
    """One convolution in place of the method's network, and one layer of attention.

    A deep one in training mode turns a rounding error into another loss within a few steps: weights moved by 1e-7 of
    themselves change SimCLR's gradient by 1e-3. And it takes a minute to compile.
    """
    torch.manual_seed(1)
    owner = getattr(task, "classifier", task)
    network = nn.Sequential(nn.Conv2d(3, owner.encoder.num_features, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2))
    setattr(owner, next(name for name in ("patch_network", "backbone", "encoder") if name in owner._modules), network)
    if hasattr(task, "target_encoder"):
        task.target_encoder = copy.deepcopy(network).requires_grad_(False)
    if hasattr(task, "attention_pooling"):
        del task.attention_pooling.layers[1:]
        task.attention_pooling.layers[0].dropout = 0.0
    return task


def losses(name, **options):
    views = {"num_views": 2} if name == "many-view selfie" else {}  # each takes a minute to compile
    task = shallow(make_task(name, **views))
    module_of(task).train()
    step = make_step(task, lr=CURVES[name][0], **options)
    found = [step(batch_of(task, number % 4), number / STEPS)["loss"].item() for number in range(STEPS)]
    assert step.compiled == options.get("compiled", False)
    return found


@pytest.fixture(scope="module")
def eager():
    return {name: losses(name) for name in (*METHODS, "supervised")}


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", CURVES)
def test_compiled_and_eager_losses_agree(eager, name):
    assert losses(name, compiled=True) == pytest.approx(eager[name], abs=CURVES[name][2])


@pytest.mark.parametrize("name", CURVES)
def test_bf16_and_fp32_losses_lie_on_each_other(eager, name):
    _, fall, _, tolerance = CURVES[name]
    assert eager[name][-1] < eager[name][0] - fall
    found = losses(name, precision="bf16")
    assert found != eager[name]
    assert found == pytest.approx(eager[name], abs=tolerance)


@pytest.mark.parametrize("micro_batch", [1, 5])
@pytest.mark.parametrize("name", ["selfie", "byol", "supervised"])
def test_pieces_of_a_batch_have_its_gradients(name, micro_batch):
    """Where the loss is a mean over images. Batch norm, which sees a piece at a time, is in evaluation mode."""
    found = []
    for size in (BATCH, micro_batch):
        task = make_task(name)
        module = module_of(task).eval()
        logged = make_step(task, micro_batch=size, double=True)(batch_of(task, 0), 0.5)
        means = {key: value.item() for key, value in logged.items()}
        found.append((means, [p.grad for p in module.parameters() if p.grad is not None]))
    (means, gradients), (of_pieces, sums) = found
    assert of_pieces == pytest.approx(means, abs=2e-6)
    for gradient, other in zip(gradients, sums, strict=True):
        assert (gradient - other).norm() < 2e-5 * gradient.norm()


class NoWaiting(TorchDispatchMode):
    """Refuses whatever copies between devices: a GPU's queue would run dry meanwhile."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)}
        assert len(devices) < 2, f"{func} between {devices}"
        return out


@pytest.fixture
def pretended_gpu():
    """Tensors on a GPU that is not there. They have shapes and no values, so reading one is an error."""
    if torch.__version__.startswith("2.9.") and not torch.cuda.is_available():
        pytest.skip("torch 2.9 asks a driver before it indexes a tensor, pretended or not")
    with FakeTensorMode():
        yield


def on_gpu(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu()])
def test_the_pretended_gpu_notices_whoever_waits(pretended_gpu, read):
    with NoWaiting(), pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        read(torch.empty(3, device="cuda"))


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 32) for name in NAMES), ("simclr", 96), ("byol", 96), ("supervised", 96)]
)
def test_a_step_waits_for_nothing(request, name, size, monkeypatch):
    """From pixels and draws on the device to new weights; the backward pass alone, torch's own, is left out."""
    task = make_task(name)
    task.image_size = size  # a larger one has more taps to its blur
    module = module_of(task)
    batch = tuple(tensor.clone() for tensor in batch_of(task, 0))
    request.getfixturevalue("pretended_gpu")
    batch = (torch.empty(BATCH, size, size, 3, dtype=torch.uint8, device="cuda"), *map(on_gpu, batch[1:]))
    module._apply(on_gpu)
    step = make_step(task, micro_batch=BATCH // 2)
    step.optimizer = make_optimizer("lars", module, lr=0.1, weight_decay=0.1)  # the one written here

    def backward(loss):
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with NoWaiting():
        logged = step(batch, 0.5)
    assert {value.device.type for value in logged.values()} == {"cuda"}
    assert all(value.shape == () for value in logged.values())


def test_after_an_error_steps_are_undone_too():
    step = make_step("supervised", lr=0.1)
    before = {key: tensor.clone() for key, tensor in step.module.state_dict().items()}
    with pytest.raises(AttributeError), undone(step):
        step(batch_of(step.task, 0), 0.1).nothing  # noqa: B018
    assert all(tensor.equal(before[key]) for key, tensor in step.module.state_dict().items())
    assert not step.optimizer.state


def tensors_of(step):
    """Weights, and the optimizer's state."""
    state = [value for entry in step.optimizer.state.values() for value in entry.values()]
    return [each.clone() for each in (*step.learning, *state)]


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw", "not fused"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_nor_does_what_follows(optimizer, value):
    task = make_task("supervised")
    step = make_step(task)
    if optimizer == "not fused":
        step.optimizer = torch.optim.SGD(step.learning, lr=0.1, momentum=0.9)
    else:
        step.optimizer = make_optimizer(optimizer, step.module, lr=0.1, weight_decay=1e-4)
    first = tensors_of(step)
    assert step(batch_of(task, 0), 0.1)["gradient_norm"].isfinite()
    good = tensors_of(step)
    assert not all(map(torch.equal, first, good))
    spoil = step.learning[0].register_hook(lambda gradient: gradient * value)
    means = step(batch_of(task, 1), 0.2)
    assert means["loss"].isfinite()
    assert not means["gradient_norm"].isfinite()
    spoil.remove()
    step(batch_of(task, 2), 0.3)
    assert step.num_spoiled == 2
    assert all(map(torch.equal, good, tensors_of(step)))
    with undone(step):
        pass
    assert step.num_spoiled == 0


def hungry(task, most):
    """As the task, but more than `most` images at once take more memory than any machine has, in the backward pass."""
    loss_of = task.loss

    def loss(*views):
        found, extra = loss_of(*views)
        if len(views[0]) // getattr(task, "num_views", 1) > most:
            found.register_hook(lambda gradient: gradient + torch.empty(2**46).sum())
        return found, extra

    task.loss = loss
    return task


def test_where_memory_runs_out_a_batch_goes_through_in_more_pieces():
    """Batch norm, which sees a piece at a time, is in evaluation mode."""
    found, listener = [], Listener()
    for most, micro_batch in ((BATCH, 2), (3, BATCH)):
        task = hungry(make_task("supervised"), most)
        module_of(task).eval()
        step = make_step(task, micro_batch=micro_batch, talk=listener)
        means = step(batch_of(task, 0), 0.5)
        found.append(({name: value.item() for name, value in means.items()}, tensors_of(step)))
    assert step.micro_batch == 2
    told = [int(line.split("--micro-batch ")[1].split(";")[0]) for line in listener.warned]
    assert told == [BATCH // 2**halved for halved in range(1, 1 + int(math.log2(BATCH // 2)))]
    (expected, weights), (means, others) = found
    assert means == expected
    assert all(map(torch.equal, weights, others))


def test_what_cannot_be_made_smaller_is_said_in_a_line_and_other_errors_are_raised():
    task = hungry(make_task("simclr"), 1)
    with pytest.raises(TrainingError, match="out of memory with 2 images per forward pass"):
        make_step(task, smallest=2)(batch_of(task, 0), 0.5)
    step = make_step(hungry(make_task("supervised"), 1))
    step.group = Group(0, 2, 0, 2)  # the other one would wait
    with pytest.raises(TrainingError, match=f"out of memory with {BATCH} images"):
        step(batch_of(step.task, 0), 0.5)
    task.loss = lambda *views: torch.zeros(3) @ torch.zeros(4)
    with pytest.raises(RuntimeError, match="size"):
        make_step(task)(batch_of(task, 0), 0.5)
