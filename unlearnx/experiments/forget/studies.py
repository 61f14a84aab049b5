"""The studies by name, on the digits and on CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unlearnx.data import Splits, load_cifar10, load_digits
from unlearnx.experiments.forget.cifar import CIFAR_STUDIES
from unlearnx.experiments.forget.methods import cifar_methods, digits_methods
from unlearnx.experiments.forget.published import published
from unlearnx.experiments.forget.selection import ForgetClass, Share, Sweeps, class_number, study_of
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.report import forget as report
from unlearnx.experiments.runs import default_device
from unlearnx.experiments.study import CIFAR10, Epochs, Limit, Preset, Study
from unlearnx.models import Training, digits_cnn, fast_dtype, vgg_cifar10


def _preset(name: str, preset: str, share: float | None) -> dict[str, Any]:
    """What a preset says of a study."""
    presets: dict[str, dict[str, Any]] = {"default": {}}
    if share is not None:
        presets["neurips23"] = {"forget_seed": 0}
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, {name} has only {' and '.join(map(repr, presets))}")
    return {"preset": preset, **presets[preset]}


def _digits(name: str, splits: Splits, epochs: int | None, preset: str, **settings: Any) -> ForgetStudy:
    settings |= _preset(name, preset, settings.get("share"))
    training = Training(60 if epochs is None else epochs, lr=2e-3)
    return study_of(name, splits, digits_cnn, training, digits_methods, **settings)


def _cifar(name: str, splits: Splits, epochs: int | None, preset: str, **settings: Any) -> ForgetStudy:
    settings |= _preset(name, preset, settings.get("share"))
    training = Training(14 if epochs is None else epochs, lr=2e-3, autocast=fast_dtype(default_device()))
    shown = published(name.removeprefix("forget-").removesuffix("-cifar"), "cifar", settings.get("share"))
    return study_of(name, splits, vgg_cifar10, training, cifar_methods, published=shown, **settings)


def forget_class_digits(
    *,
    forget_class: ForgetClass = "1",
    epochs: Epochs = None,
    methods: Sequence[str] | None = None,
    sweep: Sweeps = (),
    preset: Preset = "default",
    progress: bool = True,
) -> ForgetStudy:
    """Forget one class of the digits that come with the package.

    Args:
        forget_class: name or number of the class.
        epochs: of each training; 60 where not given.
        methods: names of those to compare; all where not given.
        sweep: texts such as ``"ssd.alpha=2,5,10"``, see :meth:`Sweep.parse`.
        preset: ``"default"`` is the only one for a class.
        progress: show progress bars.

    Raises:
        ValueError: there is no such class, method, parameter or preset.
    """
    splits = load_digits()
    number = class_number(splits, forget_class)
    return _digits(
        "forget-class-digits",
        splits,
        epochs,
        forget_class=number,
        methods=methods,
        sweep=sweep,
        preset=preset,
        progress=progress,
    )


def forget_random_digits(
    *,
    share: Share = 0.1,
    epochs: Epochs = None,
    methods: Sequence[str] | None = None,
    sweep: Sweeps = (),
    preset: Preset = "default",
    progress: bool = True,
) -> ForgetStudy:
    """Forget a random share of the digits that come with the package, another one for each seed.

    Args:
        share: of the training images.
        epochs: of each training; 60 where not given.
        preset: ``"neurips23"``: all seeds forget the same images, so that four and more get the competition's score.
        methods, sweep, progress: as for :func:`forget_class_digits`.

    Raises:
        ValueError: the share is not between 0 and 1, or there is no such method, parameter or preset.
    """
    return _digits(
        "forget-random-digits",
        load_digits(),
        epochs,
        share=share,
        methods=methods,
        sweep=sweep,
        preset=preset,
        progress=progress,
    )


def forget_class_cifar(
    root: str | Path,
    *,
    forget_class: ForgetClass = "automobile",
    limit: Limit = None,
    epochs: Epochs = None,
    methods: Sequence[str] | None = None,
    sweep: Sweeps = (),
    preset: Preset = "default",
    progress: bool = True,
) -> ForgetStudy:
    """Forget one class of CIFAR-10, with the VGG of the poisoning study.

    Args:
        root: folder or archive of CIFAR-10, see :func:`unlearnx.data.load_cifar10`.
        forget_class: name or number of the class.
        limit: training images to use.
        epochs: of each training; 14 where not given.
        methods, sweep, preset, progress: as for :func:`forget_class_digits`.

    Raises:
        FileNotFoundError: there is no CIFAR-10.
        ValueError: there is no such class, method, parameter or preset.
    """
    splits = load_cifar10(root, limit=limit)
    number = class_number(splits, forget_class)
    options = {"root": str(root), "limit": limit}
    return _cifar(
        "forget-class-cifar",
        splits,
        epochs,
        forget_class=number,
        options=options,
        methods=methods,
        sweep=sweep,
        preset=preset,
        progress=progress,
    )


def forget_random_cifar(
    root: str | Path,
    *,
    share: Share = 0.1,
    limit: Limit = None,
    epochs: Epochs = None,
    methods: Sequence[str] | None = None,
    sweep: Sweeps = (),
    preset: Preset = "default",
    progress: bool = True,
) -> ForgetStudy:
    """Forget a random share of CIFAR-10, another one for each seed, with the VGG of the poisoning study.

    Args:
        root: folder or archive of CIFAR-10, see :func:`unlearnx.data.load_cifar10`.
        share: of the training images.
        limit: training images to use.
        epochs: of each training; 14 where not given.
        preset: as for :func:`forget_random_digits`.
        methods, sweep, progress: as for :func:`forget_class_digits`.

    Raises:
        FileNotFoundError: there is no CIFAR-10.
        ValueError: the share is not between 0 and 1, or there is no such method, parameter or preset.
    """
    splits = load_cifar10(root, limit=limit)
    options = {"root": str(root), "limit": limit}
    return _cifar(
        "forget-random-cifar",
        splits,
        epochs,
        share=share,
        options=options,
        methods=methods,
        sweep=sweep,
        preset=preset,
        progress=progress,
    )


_COMPARED = ("ssd", "fine-tune", "second-order")


def _offered(name: str, make: Callable[..., ForgetStudy], **more: Any) -> Study:
    return Study(name, make, report.page, report.table, compared=_COMPARED, **more)


FORGETTING = (
    _offered("forget-class-digits", forget_class_digits, seeds=3),
    _offered("forget-random-digits", forget_random_digits, seeds=3),
    _offered("forget-class-cifar", forget_class_cifar, needs=CIFAR10),
    _offered("forget-random-cifar", forget_random_cifar, needs=CIFAR10),
    *CIFAR_STUDIES,
)
