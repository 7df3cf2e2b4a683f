"""The command line: ``fastconv train``, ``bench``, ``warmup``, ``selftest`` and ``info``.

Exit status: 0 when all went well, 1 when the self-test failed, 2 for wrong usage or data that cannot be used, 130 when
interrupted.  What goes wrong is told in one line on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# Commands import what they need when they run, so that --help is quick.
import fastconv

__all__ = ["main"]

OK, FAILED, BAD, INTERRUPTED = 0, 1, 2, 130


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt at any moment: where objects end, Python would tell of the exception and go on."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                threading.Timer(0.01, signal.raise_signal, [number]).start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments; None takes them from the command line.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    SystemExit
        With status 2 when the arguments are wrong, 0 after ``--help`` or ``--version``.

    Examples
    --------
    >>> try:
    ...     main(["--version"])
    ... except SystemExit as end:
    ...     end.code  # doctest: +ELLIPSIS
    fastconv ...
    0
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        with _interruptible():
            status: int = arguments.run(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except ValueError as error:
        from fastconv.data import DataError
        from fastconv.training import RunError

        if not isinstance(error, DataError | RunError):
            raise
        return _fail(str(error), BAD)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}", BAD)
    except MemoryError:
        return _fail("not enough memory for these images", BAD)


def _fail(text: str, status: int) -> int:
    print(f"fastconv: {' '.join(text.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastconv",
        description="Convolutions and their gradients for CPUs: trains small networks, and tells how it runs here.",
        epilog="Exit status: 0 if all went well, 1 if the self-test failed, 2 for wrong usage or unusable data, 130 when "
        "interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"fastconv {fastconv.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="train a small CNN on real images",
        description="Train a small convolutional network: by default on scikit-learn's digits, which takes less than a "
        "minute. A run folder keeps weights.npz, history.json, curves.png and the checkpoint that --resume needs.",
    )
    train.add_argument(
        "--data",
        metavar="PATH",
        help="an .npz archive with x_train, y_train, x_test, y_test (or x and y, or images and labels, of which a "
        "fifth is set aside for testing); a folder of IDX files, as MNIST and Fashion-MNIST have them; or a folder of "
        "CIFAR-10's binary files (default: scikit-learn's digits)",
    )
    train.add_argument("--model", choices=["lenet", "resnet8"], help="the network (default: lenet)")
    train.add_argument(
        "--epochs", type=_count, metavar="N", help="passes over the images (default: 30, or 10 if there are many)"
    )
    train.add_argument(
        "--batch-size", type=_count, metavar="N", help="images per step (default: 32, or 128 if there are many)"
    )
    train.add_argument("--lr", type=_positive, metavar="RATE", help="first learning rate (default: 0.05)")
    train.add_argument(
        "--augment",
        choices=["none", "shift", "warp"],
        help="how training images change from epoch to epoch: not at all, moved by a few pixels, or also rotated and "
        "stretched (default: warp, or shift if there are many)",
    )
    train.add_argument("--seed", type=_natural, metavar="N", help="same seed, same bits (default: 0)")
    train.add_argument("--run", metavar="DIR", dest="folder", help="run folder (default: runs/<date>-<model>)")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in the run folder")
    train.add_argument(
        "--distributed",
        action="store_true",
        help="share out each batch among processes that torchrun has started, on one machine or many (needs PyTorch)",
    )
    train.add_argument(
        "--profile",
        action="store_true",
        help="tell where the time of a step goes, layer by layer: profile.txt and .png",
    )
    _add_threads(train)
    train.set_defaults(run=_train)

    warmup = commands.add_parser(
        "warmup",
        help="compile all kernels now, into the cache",
        description="Compile every kernel for float32 and float64, so that no later call has to wait for the compiler.",
    )
    _add_threads(warmup)
    warmup.set_defaults(run=_warmup)

    selftest = commands.add_parser(
        "selftest",
        help="check that this machine computes rightly",
        description="Check every kernel on this machine: exactly on integers, the gradients against the forward pass, and "
        "that threads and forks change no bit. Takes seconds, and where the cache is empty minutes.",
    )
    _add_threads(selftest)
    selftest.set_defaults(run=_selftest)

    info = commands.add_parser(
        "info",
        help="tell versions, CPU, threads and cache",
        description="Print versions, the CPU and its vector features, the threading layer and the folder of the cache.",
    )
    info.add_argument("--json", action="store_true", help="print it as a JSON object, for bug reports")
    _add_threads(info)
    info.set_defaults(run=_info)

    _add_bench(commands)
    return parser


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="time fastconv on this machine, beside PyTorch and JAX",
        description="Time layers pass by pass, each library in a process of its own and in turn, beside what the machine "
        "can do at best. Prints a table; shares are of the measured peak of multiply-adds and of the copy bandwidth.",
    )
    bench.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        dest="suites",
        default=[],
        help="layers to time: resnet50, vgg16, mobile, small, inference, inception or narrow; can be given again (default: the "
        "first four)",
    )
    bench.add_argument(
        "--shapes",
        metavar="FILE",
        help="layers to time: a JSON list of objects with batch, channels, size, filters, kernel, and if they are not "
        "1, 0 and 1 stride, padding and groups; kernel and padding may be lists of two",
    )
    models = ("lenet", "resnet8", "vgg11", "resnet18", "mobilenet_v2", "convnext")
    bench.add_argument(
        "--models",
        type=_some_of(models),
        nargs="?",
        const=models,
        metavar="LIST",
        help=f"time steps of training whole networks instead, of {','.join(models)} (default: all)",
    )
    bench.add_argument(
        "--overhead",
        action="store_true",
        help="time what calls cost beside their arithmetic instead, under each framework that is installed",
    )
    kinds = ("kernels", "shapes", "depthwise", "points", "suites", "digits")
    bench.add_argument(
        "--errors",
        type=_some_of(kinds),
        nargs="?",
        const=("kernels", "shapes", "depthwise", "points"),
        metavar="LIST",
        help="time nothing: print how far results are from those in double precision, for all algorithms of 3x3 kernels, for "
        "kernels of other shapes, for 7x7 ones of channels that do not mix and for other points of Winograd's; with suites, for "
        "the layers of all suites, or of --suite and --shapes, beside PyTorch's if that is installed; with digits, the accuracy "
        "of networks that were trained with either (default: kernels,shapes,depthwise,points)",
    )
    bench.add_argument("--limit", type=_count, metavar="N", help="time the first N layers of each suite only")
    passes, layouts = ("fwd", "dx", "dw"), ("nchw", "best")
    peers = ("torch", "compile", "jax", "ncnn", "direct", "serial")
    bench.add_argument(
        "--passes",
        type=_some_of((*passes, "prepared")),
        default=passes,
        metavar="LIST",
        help="of fwd,dx,dw and prepared, which is fwd with weights that were prepared before (default: fwd,dx,dw)",
    )
    bench.add_argument(
        "--peers",
        type=_some_of(peers),
        default=(),
        metavar="LIST",
        help="whom to time too, of torch,compile,jax,ncnn,direct,serial (default: none); compile is torch.compile, with --models "
        "only; ncnn has no pass but prepared, of single images; direct is fastconv with direct sums only; serial is "
        "fastconv on one thread, and what threads gain is then told beside what the peak gains",
    )
    bench.add_argument(
        "--layouts",
        type=_some_of(layouts),
        default=layouts,
        metavar="LIST",
        help="how to compare: nchw, all with NCHW arrays; best, each with the layout that suits it (default: both)",
    )
    bench.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="default: float32")
    bench.add_argument(
        "--rounds", type=_count, default=5, metavar="N", help="turns of each, the best counts (default: 5)"
    )
    bench.add_argument("--output", metavar="FILE", help="write all results to a JSON file")
    bench.add_argument("--plot", metavar="FILE", help="draw the roofline into a PNG file")
    bench.add_argument(
        "--markdown",
        nargs="+",
        metavar="FILE",
        help="time nothing: print tables in Markdown of files that --output has written",
    )
    bench.add_argument(
        "--into", metavar="FILE", help="with --markdown: put the tables between this file's markers instead"
    )
    _add_threads(bench)
    bench.set_defaults(run=_bench)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_count, metavar="N", help="threads for the kernels (default: all)")


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def _count(text: str) -> int:
    return _whole(text, 1)


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of names, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _natural(text: str) -> int:
    return _whole(text, 0)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _set_threads(arguments: argparse.Namespace) -> None:
    if arguments.threads is None:
        return
    from numba import config

    from fastconv.training import RunError

    if arguments.threads > config.NUMBA_NUM_THREADS:
        raise RunError(f"--threads is {arguments.threads}: this process may use {config.NUMBA_NUM_THREADS}")
    fastconv.set_num_threads(arguments.threads)


def _train(arguments: argparse.Namespace) -> int:
    from fastconv import training

    # A small network's kernels take microseconds.  Threads that wait for the next one by spinning would take the cores
    # from whatever else runs here, and slow down the training itself when there are not enough cores for both.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _set_threads(arguments)
    folder = arguments.folder
    if folder is None:
        if arguments.resume:
            raise training.RunError("--resume needs --run DIR, the folder of the run to go on with")
        folder = _new_folder(arguments.model or "lenet")
    given = {name: getattr(arguments, name) for name in ("model", "epochs", "batch_size", "lr", "augment", "seed")}
    if arguments.data is not None:
        given["data"] = str(Path(arguments.data).absolute())
    trainer: training.Trainer | None
    if arguments.distributed:
        if arguments.profile:
            raise training.RunError("--profile does not go with --distributed, whose steps are PyTorch's")
        try:
            from fastconv import distributed
        except ImportError as error:
            raise training.RunError(f"--distributed needs PyTorch: pip install 'fastconv[torch]' ({error})") from None
        trainer = distributed.run(given, folder, resume=arguments.resume, threads=arguments.threads)
        if trainer is None:  # the first process tells about the run
            return OK
    else:
        trainer = training.run(given, folder, resume=arguments.resume, profile=arguments.profile)
    last = trainer.history[-1]
    print(f"test accuracy {last['test_accuracy']:.2%} ({last['test_right']} of {len(trainer.dataset.y_test)} images)")
    print(f"run folder {folder}: {', '.join(sorted(path.name for path in Path(folder).iterdir()))}")
    return OK


def _new_folder(model: str) -> Path:
    base = Path("runs", f"{time.strftime('%Y%m%d-%H%M%S')}-{model}")
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


def _warmup(arguments: argparse.Namespace) -> int:
    from fastconv import warmup

    _set_threads(arguments)
    warmup.run()
    return OK


def _selftest(arguments: argparse.Namespace) -> int:
    from fastconv import info, selftest
    from fastconv.progress import compilation_notice

    _set_threads(arguments)
    start = time.perf_counter()
    print("\n".join(info.lines(info.facts("fastconv", "cpu", "vectors", "threading layer", "threads"))), flush=True)
    with compilation_notice():
        sound = selftest.run(functools.partial(print, flush=True))
    print(
        f"{'all is well' if sound else 'FAILED: do not trust results of this machine'}, {time.perf_counter() - start:.1f} s"
    )
    return OK if sound else FAILED


def _info(arguments: argparse.Namespace) -> int:
    from fastconv import info

    _set_threads(arguments)
    if arguments.json:
        print(json.dumps(dict(info.facts()), indent=1))
        return OK
    for line in info.lines(info.facts()):
        print(line, flush=True)
    return OK


def _bench(arguments: argparse.Namespace) -> int:
    from fastconv import bench

    try:
        if arguments.markdown is not None:
            block = bench.publish(arguments.markdown, arguments.into)
            if arguments.into is None:
                print(block, end="")
            return OK
        if arguments.into is not None:
            return _fail("--into needs --markdown FILE, the results to put there", BAD)
        if arguments.overhead:
            from fastconv.bench import overhead

            _set_threads(arguments)
            print(overhead.text())
            return OK
        if arguments.errors is not None:
            from fastconv.bench import errors

            _set_threads(arguments)
            print(errors.text(arguments.errors, arguments.suites, arguments.shapes, arguments.limit))
            return OK
        if arguments.models is not None:
            print(_models(arguments))
            return OK
        report = bench.run(
            suites=arguments.suites,
            shapes=arguments.shapes,
            passes=arguments.passes,
            peers=arguments.peers,
            dtype=arguments.dtype,
            threads=arguments.threads,
            rounds=arguments.rounds,
            ways=arguments.layouts,
            limit=arguments.limit,
            output=arguments.output,
            plot=arguments.plot,
        )
    except bench.BenchError as error:
        return _fail(str(error), BAD)
    print(bench.text(report))
    return OK


def _models(arguments: argparse.Namespace) -> str:
    from fastconv import bench
    from fastconv.bench import models

    for option, default in (("suites", []), ("shapes", None), ("limit", None), ("plot", None)):
        if getattr(arguments, option) != default:
            raise bench.BenchError(f"--{option.removesuffix('s')} does not go with --models")
    report = bench.run_models(
        arguments.models,
        peers=arguments.peers,
        threads=arguments.threads,
        rounds=arguments.rounds,
        ways=arguments.layouts,
        output=arguments.output,
    )
    return models.text(report)
