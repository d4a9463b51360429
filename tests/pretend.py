"""A pretended GPU: tensors that say "cuda:0" and hold data of the CPU, so that every branch for CUDA runs without one.

    with gpu() as device:                         everything in here finds a GPU
        train_skd.main(["--device", "cuda", ...])
    device.waits                                  where the host waited: "why @ file:line", in order
    device.unpinned                               where it copied from memory that is not pinned
    device.launches, device.live, device.peak     kernels; bytes that are held now, and at most

It fails where a GPU would: an operation that mixes devices, a host's generator that draws on the device, numpy of a
device tensor, and an index out of range, after which nothing works any more (`dead`), as after a device-side assert. It
counts what a GPU makes slow: waits of the host, kernels, copies from memory that is not pinned. It knows how many bytes
are held. What it cannot show: a GPU's kernels, numbers, speed and streams, and several GPUs.

How it works. An OnDevice tensor is a tensor on torch's "meta" device, to which C++ is told to apply the rules of CUDA,
and it carries the real data in `held`. Every operation on it arrives in GPU.run, which works on the data and wraps what
comes out. What in Python asks for a device or for torch.cuda is answered by the replacements in `gpu`.
"""

import contextlib
import functools
import sys
import unittest.mock
from pathlib import Path

import torch
import torch.utils._device
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ROOT = Path(__file__).parents[1]
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
# Operations whose answer the host wants to know: it waits until the device has come that far.
ANSWERS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
LOOKS_UP = INDEXING | {"embedding", "gather", "scatter", "scatter_"}
# No kernel: another view of the same memory, or memory that nobody has written.
FREE = {"view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze"}
FREE |= {"detach", "alias", "as_strided", "split", "unbind", "chunk", "lift_fresh", "split_with_sizes", "diagonal"}
FREE |= {"unfold", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
# What autocast makes of these functions' arguments (of which this project calls no others).
IN_BF16 = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention"}
IN_FLOAT32 = {"softmax", "log_softmax", "logsumexp", "layer_norm", "cross_entropy", "sum", "cumsum", "exp", "expm1"}
IN_FLOAT32 |= {"log", "log1p", "pow", "square", "norm", "softplus", "cosine_similarity", "mse_loss"}
DEAD = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported later"
SEVERAL = (list, tuple)
current = None  # the GPU that is there


class Memory:
    """One tensor's hold on the storage under its data: the device knows when it is let go."""

    def __init__(self, device, data):
        storage = data.untyped_storage()
        self.device, self.storage = device, storage
        device.hold(storage.data_ptr(), storage.nbytes(), +1)

    def __del__(self):
        self.device.hold(self.storage.data_ptr(), self.storage.nbytes(), -1)


class OnDevice(torch.Tensor):
    """A tensor on the pretended GPU; `held` is its data."""

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        own = torch.Tensor._make_subclass(cls, shape, requires_grad, dispatch_device=True, device_for_backend_keys=CUDA)
        own.held, own.memory = held, Memory(current, held)
        return own

    def __init__(self, held, requires_grad=False):
        pass

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        return f"OnDevice({self.held})"

    def __format__(self, how):
        return format(self.item() if self.dim() == 0 else repr(self), how)

    def tolist(self):
        current.wait("tolist")
        return self.held.tolist()

    def numpy(self):
        raise AssertionError("a tensor on a device has no numpy()")

    def __deepcopy__(self, memo):
        copied = OnDevice(self.held.clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return current.run(func, args, kwargs or {})


class GPU(TorchDispatchMode):
    """Every operation inside is carried out on real data, and judged. `before`, if set, is called with the name of each
    operation on the device and may raise what a GPU would."""

    def __init__(self):
        super().__init__()
        self.waits, self.unpinned = [], []
        self.launches, self.dead, self.before = 0, False, None
        self.storages, self.live, self.peak = {}, 0, 0

    def hold(self, address, size, change):
        """A tensor takes hold of a storage (+1) or lets it go (-1)."""
        count = self.storages.get(address, 0) + change
        self.live += size * change if count == (change > 0) else 0
        self.peak = max(self.peak, self.live)
        if count:
            self.storages[address] = count
        else:
            del self.storages[address]

    def wait(self, why):
        """The host waits for the device."""
        self.check()
        self.waits.append(f"{why} @ {place()}")

    def check(self):
        """Nothing works any more after a device-side assert."""
        if self.dead:
            raise RuntimeError(DEAD)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """One operation: what would fail on a GPU fails, what waits is counted, and the data does the rest."""
        name = func.overloadpacket.__name__
        if name == "device" and func.namespace == "prim":
            return torch.device("meta") if isinstance(args[0], OnDevice) else args[0].device
        tensors = tensors_in(args) + tensors_in(kwargs.values())
        ours = any(type(x) is OnDevice for x in tensors)
        to = kwargs.get("device")
        # C++ asks for "meta" where it wants memory beside an OnDevice tensor, and torch.device("meta") is a mode.
        beside = to is not None and to.type == "meta" and torch.utils._device.CURRENT_DEVICE is None
        there = beside or to is not None and to.type == "cuda"
        if not ours and not there:
            return func(*args, **kwargs)
        if to is None or name != "_to_copy" or there:
            self.check()
        if self.before is not None:
            self.before(name)
        home = name == "_to_copy" and to is not None and not there
        self._judge(name, args, kwargs, tensors, home)
        real_args, real_kwargs = tuple(map(data_of, args)), {key: data_of(x) for key, x in kwargs.items()}
        if there:
            real_kwargs |= {"device": CPU}
        if name == "_to_copy":
            real_kwargs.pop("non_blocking", None)
        try:
            out = func(*real_args, **real_kwargs)
        except (IndexError, RuntimeError) as error:
            if name not in LOOKS_UP or "out of" not in str(error):
                raise
            self.dead = True
            raise RuntimeError(DEAD) from error
        if func._schema.is_mutable and name.endswith("_"):
            return args[0] if func._schema.returns else None
        if home:
            return out
        if name == "_to_copy" and out is real_args[0]:
            out = out.clone()  # between CPU and CPU nothing would be copied
        return placed(out)

    def _judge(self, name, args, kwargs, tensors, home):
        ours = any(type(x) is OnDevice for x in tensors)
        strangers = [x for x in tensors if type(x) is not OnDevice and x.dim() > 0]
        moves = name in ("_to_copy", "copy_")
        if ours and strangers and not moves:
            shape = tuple(strangers[0].shape)
            raise AssertionError(f"{name} mixes devices: a tensor of the host, {shape}, at {place()}")
        if ours and kwargs.get("generator") is not None:
            raise AssertionError(f"{name} draws on the device from a generator of the host, at {place()}")
        if home or ours and (name in ANSWERS or name == "copy_" and not isinstance(args[0], OnDevice)):
            self.wait(name)
        if ours and name in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.wait(f"{name} by a mask")
        if moves and strangers:  # from host to device
            asynchronous = kwargs.get("non_blocking") or name == "copy_" and len(args) > 2 and args[2]
            if not asynchronous:
                self.wait(f"{name} to the device")
            elif not getattr(strangers[0], "pinned", False):
                self.unpinned.append(place())
        self.launches += name not in FREE


class Autocast(TorchFunctionMode):
    """Autocast for OnDevice tensors: torch's own asks C++ where a tensor is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if torch.is_autocast_enabled("cuda") and name in IN_BF16 | IN_FLOAT32:
            dtype = torch.get_autocast_dtype("cuda") if name in IN_BF16 else torch.float32

            def cast(x):
                fits = isinstance(x, OnDevice) and x.dtype in (torch.float32, torch.bfloat16)
                return x.to(dtype) if fits and x.dtype != dtype else x

            args, kwargs = tuple(map(cast, args)), {key: cast(x) for key, x in kwargs.items()}
        return func(*args, **kwargs)


def tensors_in(content):
    """The tensors that lists and tuples hold, however nested."""
    found = []
    for x in content:
        if isinstance(x, torch.Tensor):
            found.append(x)
        elif type(x) in SEVERAL:
            found += tensors_in(x)
    return found


def data_of(x):
    """Tensors of the device, in lists or not, as the data that they hold."""
    if type(x) is OnDevice:
        return x.held
    return type(x)(map(data_of, x)) if type(x) in SEVERAL else x


def placed(x):
    """Tensors, in lists or not, on the device."""
    if isinstance(x, torch.Tensor):
        return OnDevice(x)
    return type(x)(map(placed, x)) if type(x) in SEVERAL else x


def place():
    """The line of this project that is at work, as text."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        # A virtual environment may lie in the project, too.
        own = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if own and path.name != "pretend.py":
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def down(content):
    """Tensors and plain values, however nested, as a file holds them: with all data on the host."""
    return tree_map(lambda x: x.detach().held.clone() if isinstance(x, OnDevice) else x, content)


@contextlib.contextmanager
def gpu():
    """A `with` block in which torch has one GPU; yields the GPU. One at a time."""
    global current
    to, home, make, as_tensor, save, load = (
        torch.Tensor.to, torch.Tensor.cpu, torch.tensor, torch.as_tensor, torch.save, torch.load
    )  # fmt: skip

    def is_cuda(device):
        return device is not None and torch.device(device).type == "cuda"

    def our_to(self, *args, **kwargs):
        wanted = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device | str)]
        if not isinstance(self, OnDevice):
            first = [CUDA if isinstance(x, torch.device | str) and is_cuda(x) else x for x in args]
            if is_cuda(kwargs.get("device")):
                kwargs["device"] = CUDA
            return to(self, *first, **kwargs)
        if wanted and torch.device(wanted[0]).type == "cpu":
            return our_cpu(self)
        args = [x for x in args if isinstance(x, torch.dtype)]  # it is there already
        kwargs = {name: x for name, x in kwargs.items() if name == "dtype" and x is not None}
        return to(self, *args, **kwargs) if args or kwargs else self

    def our_cpu(self):
        return torch.ops.aten._to_copy.default(self, device=CPU) if isinstance(self, OnDevice) else home(self)

    def pin_memory(self):
        assert not isinstance(self, OnDevice), "only memory of the host is pinned"
        pinned = self.clone()
        pinned.pinned = True
        return pinned

    def our_load(path, map_location=None, **more):
        content, there = load(path, map_location="cpu", **more), is_cuda(map_location)
        return tree_map(lambda x: x.to(CUDA) if there and isinstance(x, torch.Tensor) else x, content)

    def our_save(content, *args, **kwargs):
        return save(down(content), *args, **kwargs)

    def made_there(function, data, *args, device=None, **kwargs):
        """C++ would make it on the host and copy it by itself."""
        made = function(data, *args, **kwargs)
        return made if device is None else made.to(device)

    enter, leave, modes = torch.autocast.__enter__, torch.autocast.__exit__, []

    def our_enter(self):
        modes.append(Autocast())
        modes[-1].__enter__()
        return enter(self)

    def our_exit(self, *error):
        modes.pop().__exit__(*error)
        return leave(self, *error)

    current = device = GPU()
    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "pretended GPU",
        "is_bf16_supported": lambda *args, **kwargs: True,
        "synchronize": lambda where=None: device.wait("synchronize"),
        "reset_peak_memory_stats": lambda where=None: setattr(device, "peak", device.live),
        "max_memory_allocated": lambda where=None: device.peak,
        "memory_allocated": lambda where=None: device.live,
        "mem_get_info": lambda where=None: (80_000_000_000 - device.live, 80_000_000_000),
        "empty_cache": lambda: None,
    }
    replaced = [(torch.cuda, name, answer) for name, answer in answers.items()]
    replaced += [(torch.Tensor, "to", our_to), (torch.Tensor, "cpu", our_cpu), (torch.Tensor, "pin_memory", pin_memory)]
    replaced += [(torch, "save", our_save), (torch, "load", our_load)]
    for name, function in (("tensor", make), ("as_tensor", as_tensor)):
        replaced.append((torch, name, functools.partial(made_there, function)))
    replaced += [(torch.autocast, "__enter__", our_enter), (torch.autocast, "__exit__", our_exit)]
    # A torch that is built for CUDA asks the driver here, of which there may be none.
    checks = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
    optimizer = torch.optim.Optimizer
    replaced += [(optimizer, name, lambda self: None) for name in checks if hasattr(optimizer, name)]
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # model.to(device) makes new parameters
    try:
        with contextlib.ExitStack() as stack:
            for owner, name, answer in replaced:
                stack.enter_context(unittest.mock.patch.object(owner, name, answer))
            stack.enter_context(device)
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
