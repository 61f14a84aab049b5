"""The studies of the field's tables: a class, a subclass or a random share of CIFAR-10, CIFAR-20 or CIFAR-100."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Unpack

from unlearnx.data import Splits, cifar20, load_cifar10, load_cifar100
from unlearnx.experiments.forget.methods import resnet_methods
from unlearnx.experiments.forget.protocols import PROTOCOLS
from unlearnx.experiments.forget.published import published
from unlearnx.experiments.forget.references import TrainedModels
from unlearnx.experiments.forget.selection import (
    Common,
    ForgetClass,
    ForgetClassOrOwn,
    Share,
    class_number,
    study_of,
)
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.report import forget as report
from unlearnx.experiments.study import CIFAR10, CIFAR100, Limit, Study

Protocols = Annotated[str, f"{', '.join(PROTOCOLS)}: whose protocol"]
Models = Annotated[
    Path | None,
    "folder of trained networks of the quick preset: original-SEED.pt, class-SEED.pt, random-SEED.pt; where not given, "
    "the folder that $UNLEARNX_MODELS names",
]


class Options(Common, total=False):
    """The keywords that all studies in this module have."""

    preset: Protocols


CLASSES = {"cifar10": "automobile", "cifar20": "vehicles_2", "cifar100": "rocket"}  # forgotten where none is named
SUBCLASS = "rocket"
FILES_CLASS, FILES_SHARE = "automobile", 0.1  # what files of trained models are without


def forget_class_of(
    data: str,
    root: str | Path,
    *,
    forget_class: ForgetClassOrOwn = None,
    limit: Limit = None,
    models: Models = None,
    **options: Unpack[Options],
) -> ForgetStudy:
    """Forget one class of CIFAR-10, CIFAR-20 (the superclasses of CIFAR-100) or CIFAR-100.

    Args:
        data: ``"cifar10"``, ``"cifar20"`` or ``"cifar100"``.
        root: folder or archive of CIFAR-10 or CIFAR-100, see :func:`unlearnx.data.load_cifar10`.
        forget_class: name or number of the class; ``"automobile"``, ``"vehicles_2"`` or ``"rocket"`` where not given.
        limit: training images to use.
        epochs: of each training, the preset's where not given.
        methods: names of those to compare; all where not given.
        sweep: texts such as ``"ssd.alpha=2,5,10"``, see :meth:`Sweep.parse`.
        models: folder of trained networks; with the preset ``"quick"`` on CIFAR-10, all images and all epochs. Those
            that it lacks are trained.
        preset: ``"quick"``: a ResNet-9 trained for 14 epochs, every method within a tenth of retraining's gradients.
            ``"salun"``: the first 45,000 images, a ResNet-18, 182 epochs. ``"ssd"``: a ResNet-18, the gap of SSD's
            attack. ``"neurips23"``: one forget set for all seeds, each seed a model, with the competition's score.
        progress: show progress bars.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: there is no such class, method, parameter or preset, or `models` do not fit.
    """
    splits = _splits(data, root, limit)
    name = CLASSES[data] if forget_class is None else forget_class
    number = class_number(splits, name)
    return _study(
        "class",
        data,
        splits,
        {"forget_class": number},
        root=root,
        limit=limit,
        models=models,
        trained="class" if splits.classes[number] == FILES_CLASS else None,
        **options,
    )


def forget_subclass_of(
    data: str,
    root: str | Path,
    *,
    forget_class: ForgetClass = SUBCLASS,
    limit: Limit = None,
    **options: Unpack[Options],
) -> ForgetStudy:
    """Forget one of the 100 classes of CIFAR-100, of a network that tells the 20 superclasses apart, or all of them.

    A retrained network still knows the rest of the superclass, and so what most images of the forgotten class are.

    Args:
        data: ``"cifar20"``, or ``"cifar100"``, whose subclasses are its classes.
        root: folder or archive of CIFAR-100, see :func:`unlearnx.data.load_cifar100`.
        forget_class: name or number of the class, of 100.
        limit, epochs, methods, sweep, preset, progress: as for :func:`forget_class_of`.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: there is no such class, method, parameter or preset.
    """
    finer = load_cifar100(root, limit=limit)
    own: dict[str, Any] = {"forget_class": class_number(finer, forget_class)}
    if data == "cifar20":
        own["finer"] = finer
    splits = cifar20(finer) if data == "cifar20" else finer
    return _study("subclass", data, splits, own, root=root, limit=limit, **options)


def forget_random_of(
    data: str,
    root: str | Path,
    *,
    share: Share = 0.1,
    limit: Limit = None,
    models: Models = None,
    **options: Unpack[Options],
) -> ForgetStudy:
    """Forget a random share of CIFAR-10, CIFAR-20 or CIFAR-100, another one for each seed.

    Args:
        data, root, limit, epochs, methods, sweep, models, preset, progress: as for :func:`forget_class_of`.
        share: of the training images.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: the share is not between 0 and 1, there is no such method, parameter or preset, or `models` do not
            fit.
    """
    return _study(
        "random",
        data,
        _splits(data, root, limit),
        {"share": share},
        root=root,
        limit=limit,
        models=models,
        trained="random" if share == FILES_SHARE else None,
        **options,
    )


def _study(
    kind: str,
    data: str,
    splits: Splits,
    own: dict[str, Any],
    *,
    root: str | Path,
    limit: int | None,
    models: Path | None = None,
    trained: str | None = None,
    preset: str = "quick",
    **common: Unpack[Common],
) -> ForgetStudy:
    """The study of a kind of request.

    Args:
        kind, data: its name.
        splits: the images, with the labels that the network tells apart.
        own: what is to be forgotten.
        root, limit: where the images are from.
        models: folder of trained networks.
        trained: the kind of files there with networks that were trained without what is to be forgotten.
        preset: the protocol.
        common: of all studies of forgetting.
    """
    if preset not in PROTOCOLS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[preset]
    whole = preset == "quick" and data == "cifar10" and limit is None and common.get("epochs") is None
    if models is not None and not whole:
        raise ValueError(
            f"models: {models} holds networks trained by the quick preset on all of CIFAR-10, expected neither limit "
            "nor epochs nor another preset or data beside it"
        )
    folder = models or (os.environ.get("UNLEARNX_MODELS") if whole else None)
    own |= {"preset": preset, "published": published(kind, data, own.get("share")), **protocol.settings}
    own["options"] = {"root": str(root), "limit": limit, "preset": preset}
    if folder:
        own["options"]["models"] = str(folder)
        own["models"] = TrainedModels(Path(folder), "resnet9", trained)
    kept = _first(splits, protocol.images)
    if "finer" in own:
        own["finer"] = _first(own["finer"], protocol.images)
    return study_of(
        f"forget-{kind}-{data}",
        kept,
        partial(protocol.network, classes=len(splits.classes)),
        protocol.training,
        partial(resnet_methods, passes=protocol.passes),
        own,
        **common,
    )


def _splits(data: str, root: str | Path, limit: int | None) -> Splits:
    if data == "cifar10":
        return load_cifar10(root, limit=limit)
    splits = load_cifar100(root, limit=limit)
    return cifar20(splits) if data == "cifar20" else splits


def _first(splits: Splits, images: int | None) -> Splits:
    """The first training images and all test images."""
    if images is None:
        return splits
    return replace(splits, train_x=splits.train_x[:images], train_y=splits.train_y[:images])


def _offered(kind: str, data: str, make: Callable[..., ForgetStudy]) -> Study:
    return Study(
        f"forget-{kind}-{data}",
        partial(make, data),
        report.page,
        report.table,
        compared=("fine-tune", "salun"),
        needs=CIFAR10 if data == "cifar10" else CIFAR100,
    )


CIFAR_STUDIES = tuple(
    _offered(kind, data, make)
    for data in ("cifar10", "cifar20", "cifar100")
    for kind, make in (("class", forget_class_of), ("subclass", forget_subclass_of), ("random", forget_random_of))
    if (kind, data) != ("subclass", "cifar10")  # which has none
)
