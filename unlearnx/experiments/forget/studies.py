"""The studies by name, on the digits and on CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from unlearnx.data import Splits, load_cifar10, load_digits
from unlearnx.experiments.forget.cifar import CIFAR_STUDIES
from unlearnx.experiments.forget.methods import cifar_methods, digits_methods
from unlearnx.experiments.forget.published import published
from unlearnx.experiments.forget.selection import Common, ForgetClass, Share, class_number, study_of
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.report import forget as report
from unlearnx.experiments.runs import default_device
from unlearnx.experiments.study import CIFAR10, Limit, Preset, Study, check_preset
from unlearnx.models import Training, digits_cnn, fast_dtype, vgg_cifar10

ONE_FORGET_SET = "neurips23"  # the preset with which all seeds forget the same images


class Options(Common, total=False):
    """The keywords that all studies in this module have."""

    preset: Preset


def _preset(name: str, preset: str, share: float | None) -> dict[str, Any]:
    """What a preset says of a study."""
    check_preset(name, preset, *(() if share is None else (ONE_FORGET_SET,)))
    return {"preset": preset, **({"forget_seed": 0} if preset == ONE_FORGET_SET else {})}


def _digits(
    kind: str, splits: Splits, own: dict[str, Any], *, preset: str = "default", **common: Unpack[Common]
) -> ForgetStudy:
    name = f"forget-{kind}-digits"
    own |= _preset(name, preset, own.get("share"))
    return study_of(name, splits, digits_cnn, Training(60, lr=2e-3), digits_methods, own, **common)


def _cifar(
    kind: str,
    root: str | Path,
    limit: int | None,
    splits: Splits,
    own: dict[str, Any],
    *,
    preset: str = "default",
    **common: Unpack[Common],
) -> ForgetStudy:
    name, share = f"forget-{kind}-cifar", own.get("share")
    own |= _preset(name, preset, share)
    own |= {"options": {"root": str(root), "limit": limit}, "published": published(kind, "cifar", share)}
    training = Training(14, lr=2e-3, autocast=fast_dtype(default_device()))
    return study_of(name, splits, vgg_cifar10, training, cifar_methods, own, **common)


def forget_class_digits(*, forget_class: ForgetClass = "1", **options: Unpack[Options]) -> ForgetStudy:
    """Forget one class of the digits that come with the package.

    Args:
        forget_class: name or number of the class.
        epochs: of each training; 60 where not given.
        methods: names of those to compare; all where not given.
        sweep: texts such as ``"ssd.alpha=2,5,10"``, see :meth:`Sweep.parse`.
        preset: ``"default"`` is the only one for a class.
        progress: show progress bars, which is so where not given.

    Raises:
        ValueError: there is no such class, method, parameter or preset.
    """
    splits = load_digits()
    return _digits("class", splits, {"forget_class": class_number(splits, forget_class)}, **options)


def forget_random_digits(*, share: Share = 0.1, **options: Unpack[Options]) -> ForgetStudy:
    """Forget a random share of the digits that come with the package, another one for each seed.

    Args:
        share: of the training images.
        epochs: of each training; 60 where not given.
        preset: ``"default"``, or ``"neurips23"``: all seeds forget the same images, so that four and more get the
            competition's score.
        methods, sweep, progress: as for :func:`forget_class_digits`.

    Raises:
        ValueError: the share is not between 0 and 1, or there is no such method, parameter or preset.
    """
    return _digits("random", load_digits(), {"share": share}, **options)


def forget_class_cifar(
    root: str | Path, *, forget_class: ForgetClass = "automobile", limit: Limit = None, **options: Unpack[Options]
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
    return _cifar("class", root, limit, splits, {"forget_class": class_number(splits, forget_class)}, **options)


def forget_random_cifar(
    root: str | Path, *, share: Share = 0.1, limit: Limit = None, **options: Unpack[Options]
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
    return _cifar("random", root, limit, load_cifar10(root, limit=limit), {"share": share}, **options)


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
