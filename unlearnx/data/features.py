"""Tables whose features are to be forgotten: surnames in e-mails, addresses in apps, columns of two small tables."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearnx._extras import extra

ADULT_NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")
ADULT_CATEGORIES = (
    "workclass",
    "education",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native-country",
)
ADULT_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
)
TEST_SHARE = 0.2  # of the rows of tables without a split of their own


@dataclass(frozen=True)
class FeatureTable:
    """A labelled table, split into training and test data, and the features in it that may have to be forgotten.

    Attributes:
        train_x, test_x: (N, features) float64, arrays or sparse arrays of SciPy; training rows have at most norm 1.
        train_y, test_y: labels, int64 (N,), 0 or 1.
        sensitive: the features that may have to be forgotten: the columns of each, by name.
        kind: what these features are, in the plural, such as "surnames".

    Example:
        >>> x, y = torch.eye(4).numpy(), torch.tensor([0, 1, 0, 1]).numpy()
        >>> table = FeatureTable(x[:3], y[:3], x[3:], y[3:], sensitive={"Smith": [0]}, kind="surnames")
        >>> model = CertifiedRemoval(certified=False).fit(table.train_x, table.train_y)
        >>> model.remove_features(table.sensitive["Smith"]).count
        1
    """

    train_x: Any
    train_y: np.ndarray
    test_x: Any
    test_y: np.ndarray
    sensitive: dict[str, list[int]]
    kind: str


def load_enron(folder: str | Path) -> FeatureTable:
    """E-mails as bags of words, spam (1) or not, from ``enron-spam.npz``; surnames are sensitive.

    The file's rows have at most norm 1. A random fifth of them is for testing.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: SciPy is missing.
        ValueError: a surname is not in the vocabulary.
    """
    with np.load(_file(folder, "enron-spam.npz")) as stored:
        x, y = _sparse(stored, ""), (stored["labels"] > 0).astype(np.int64)
        surnames, vocabulary = stored["surnames"].tolist(), stored["vocabulary"].tolist()
    places = {word: column for column, word in enumerate(vocabulary)}
    unknown = [name for name in surnames if name not in places]
    if unknown:
        raise ValueError(f"enron-spam.npz: the surname {unknown[0]!r} is not in the vocabulary, expected all of them")
    return _split(_at_most_norm_1(x), y, {name: [places[name]] for name in surnames}, "surnames")


def load_drebin(folder: str | Path) -> FeatureTable:
    """Android apps by their properties, malware (1) or not, from ``drebin-malware.npz``; ``url::`` properties are
    sensitive.

    Rows are scaled to unit norm.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: SciPy is missing.
    """
    with np.load(_file(folder, "drebin-malware.npz")) as stored:
        (x, y), (test_x, test_y) = (
            (_norm_1(_sparse(stored, f"{part}_")), (stored[f"{part}_labels"] > 0).astype(np.int64))
            for part in ("train", "test")
        )
        vocabulary = stored["vocabulary"].tolist()
    sensitive = {name: [column] for column, name in enumerate(vocabulary) if name.startswith("url::")}
    return FeatureTable(x, y, test_x, test_y, sensitive, "addresses")


def load_adult(folder: str | Path) -> FeatureTable:
    """UCI's census income, above 50,000 dollars (1) or not, from ``adult.data.gz`` and ``adult.test.gz``.

    Categories are one-hot encoded, with unknown values ("?") as a category of their own; numbers are scaled to [0, 1]
    on the training data; rows are scaled to norm 1. A feature is a column of the raw table, with all of its categories.

    Raises:
        FileNotFoundError: a file is missing.
        ImportError: scikit-learn is missing.
        ValueError: a row does not have 15 fields.
    """
    with extra("load_adult", "scikit-learn"):
        from sklearn.compose import ColumnTransformer
        from sklearn.preprocessing import MinMaxScaler, OneHotEncoder
    train, test = (_adult_rows(_file(folder, f"adult.{part}.gz")) for part in ("data", "test"))
    number, category = ([ADULT_COLUMNS.index(name) for name in names] for names in (ADULT_NUMBERS, ADULT_CATEGORIES))
    encoder = ColumnTransformer(
        [
            ("number", MinMaxScaler(clip=True), number),
            ("category", OneHotEncoder(handle_unknown="ignore", sparse_output=False), category),
        ],
        sparse_threshold=0,
    )
    x, test_x = _norm_1(encoder.fit_transform(train)), _norm_1(encoder.transform(test))
    sizes = [len(found) for found in encoder.named_transformers_["category"].categories_]
    names = [*ADULT_NUMBERS, *np.repeat(ADULT_CATEGORIES, sizes).tolist()]
    sensitive = {name: [k for k, owner in enumerate(names) if owner == name] for name in ADULT_COLUMNS[:-1]}
    y, test_y = (np.array([row[-1].startswith(">50K") for row in rows], np.int64) for rows in (train, test))
    return FeatureTable(x, y, test_x, test_y, sensitive, "columns of the table")


def load_diabetes(folder: str | Path) -> FeatureTable:
    """Pima diabetes, diagnosed (1) or not, from ``diabetes.csv``.

    Features are standardised, a constant column is appended (it is never forgotten), and everything is divided by the
    largest norm of a training row. A random fifth of the rows is for testing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the last column is not ``Outcome``.
    """
    file = _file(folder, "diabetes.csv")
    with file.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    if header[-1] != "Outcome":
        raise ValueError(f"{file}: its last column is {header[-1]!r}, expected 'Outcome'")
    table = np.array(rows, np.float64)
    x, y = table[:, :-1], table[:, -1].astype(np.int64)
    split = _split(x, y, {name: [column] for column, name in enumerate(header[:-1])}, "columns of the table")
    mean, deviation = split.train_x.mean(0), split.train_x.std(0)
    parts = [
        np.pad((part - mean) / deviation, ((0, 0), (0, 1)), constant_values=1) for part in (split.train_x, split.test_x)
    ]
    longest = np.linalg.norm(parts[0], axis=1).max()
    return FeatureTable(
        parts[0] / longest, split.train_y, parts[1] / longest, split.test_y, split.sensitive, split.kind
    )


FEATURE_TABLES = {"enron": load_enron, "drebin": load_drebin, "adult": load_adult, "diabetes": load_diabetes}
"""The function that loads each table, by the table's name on the command line."""


def _file(folder: str | Path, name: str) -> Path:
    file = Path(folder) / name
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: has no file {name}")
    return file


def _sparse(stored: Any, prefix: str) -> Any:
    with extra("sparse tables", "scipy"):
        from scipy.sparse import csr_array
    entries = (stored[prefix + "data"].astype(np.float64), stored[prefix + "indices"], stored[prefix + "indptr"])
    return csr_array(entries, shape=tuple(stored[prefix + "shape"]))


def _adult_rows(file: Path) -> np.ndarray:
    """Rows of text, (N, 15); the test file begins with a line that is not a row."""
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    rows = [row for row in csv.reader(lines, skipinitialspace=True) if row and not row[0].startswith("|")]
    bad = next((k for k, row in enumerate(rows) if len(row) != len(ADULT_COLUMNS)), None)
    if bad is not None:
        raise ValueError(f"{file}: row {bad} has {len(rows[bad])} fields, expected {len(ADULT_COLUMNS)}")
    return np.array(rows, object)


def _split(x: Any, y: np.ndarray, sensitive: dict[str, list[int]], kind: str) -> FeatureTable:
    order = np.random.default_rng(0).permutation(len(y))
    held_out = round(TEST_SHARE * len(y))
    test, train = np.sort(order[:held_out]), np.sort(order[held_out:])
    return FeatureTable(x[train], y[train], x[test], y[test], sensitive, kind)


def _norms(x: Any) -> np.ndarray:
    return np.sqrt(np.asarray((x * x).sum(1)).ravel())


def _scaled(x: Any, scales: np.ndarray) -> Any:
    """Each row multiplied by its scale."""
    if isinstance(x, np.ndarray):
        return x * scales[:, None]
    x = x.copy()
    x.data *= np.repeat(scales, np.diff(x.indptr))
    return x


def _norm_1(x: Any) -> Any:
    """Rows scaled to norm 1; rows of zeros stay."""
    norms = _norms(x)
    return _scaled(x, 1 / np.where(norms > 0, norms, 1))


def _at_most_norm_1(x: Any) -> Any:
    """Rows scaled down to norm 1 where rounding has made them longer."""
    return _scaled(x, 1 / np.maximum(_norms(x), 1))
