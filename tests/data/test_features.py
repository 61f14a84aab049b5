import gzip

import numpy as np
import pytest

from unlearnx.data import FEATURE_TABLES, load_adult, load_diabetes, load_drebin, load_enron

SIZES = {
    "enron": (5395, 1349, 4902),
    "drebin": (39380, 9846, 2081),
    "adult": (32561, 16281, 108),
    "diabetes": (614, 154, 9),
}


@pytest.mark.parametrize("name", FEATURE_TABLES)
def test_real_tables(name, real_data):
    table = FEATURE_TABLES[name](real_data)
    train, test, features = SIZES[name]
    assert table.train_x.shape == (train, features)
    assert table.test_x.shape == (test, features)
    norms = np.sqrt(np.asarray((table.train_x * table.train_x).sum(1)).ravel())
    assert norms.max() <= 1 + 1e-9
    for y, n in ((table.train_y, train), (table.test_y, test)):
        assert y.shape == (n,)
        assert set(y.tolist()) == {0, 1}
    columns = [column for group in table.sensitive.values() for column in group]
    assert len(set(columns)) == len(columns)
    assert 0 <= min(columns) <= max(columns) < features
    if name in ("enron", "drebin"):
        assert len(table.sensitive) >= 100


def write_npz(file, prefixes, vocabulary, **more):
    arrays = {}
    for prefix in prefixes:
        arrays |= {
            f"{prefix}data": np.array([3.0, 4.0, 1.0], np.float32),
            f"{prefix}indices": np.array([0, 2, 1]),
            f"{prefix}indptr": np.array([0, 2, 3, 3, 3, 3]),
            f"{prefix}shape": np.array([5, 3]),
            f"{prefix}labels": np.array([-1, 1, 1, -1, 1]),
        }
    np.savez(file, vocabulary=np.array(vocabulary), **arrays, **more)


def test_drebin_is_scaled_to_unit_rows(tmp_path):
    write_npz(tmp_path / "drebin-malware.npz", ["train_", "test_"], ["url::a", "api::b", "url::c"])
    table = load_drebin(tmp_path)
    np.testing.assert_allclose(table.train_x.toarray()[:3], [[0.6, 0, 0.8], [0, 1, 0], [0, 0, 0]])
    assert table.sensitive == {"url::a": [0], "url::c": [2]}
    assert table.train_y.tolist() == [0, 1, 1, 0, 1]


def test_enron_scales_long_rows_only_and_knows_its_surnames(tmp_path):
    file = tmp_path / "enron-spam.npz"
    write_npz(file, [""], ["anna", "berg", "cohn"], surnames=np.array(["cohn", "berg"]))
    table = load_enron(tmp_path)
    both = np.concatenate([table.train_x.toarray(), table.test_x.toarray()])
    assert sorted(np.linalg.norm(both, axis=1).round(9)) == [0, 0, 0, 1, 1]
    assert (len(table.train_y), len(table.test_y)) == (4, 1)
    assert table.sensitive == {"cohn": [2], "berg": [1]}
    write_npz(file, [""], ["anna", "berg", "cohn"], surnames=np.array(["dahl"]))
    with pytest.raises(ValueError, match="surname 'dahl' is not in the vocabulary"):
        load_enron(tmp_path)


ROW = (
    "{age}, {work}, 77516, Bachelors, 13, Never-married, Adm-clerical, Own-child, White, Male, 2174, 0, 40, Cuba, "
    "{income}"
)


def adult_text(*rows):
    return gzip.compress("\n".join(rows).encode())


def test_adult_is_encoded_by_column(tmp_path):
    train = [
        ROW.format(age=age, work=work, income=income)
        for age, work, income in ((20, "Private", "<=50K"), (40, "?", ">50K"), (60, "State-gov", "<=50K"))
    ]
    (tmp_path / "adult.data.gz").write_bytes(adult_text(*train, ""))
    test = ROW.format(age=70, work="Never-worked", income=">50K.")
    (tmp_path / "adult.test.gz").write_bytes(adult_text("|1x3 Cross validator", test))
    table = load_adult(tmp_path)
    assert table.sensitive["age"] == [0]
    assert table.sensitive["workclass"] == [6, 7, 8]
    assert len(table.sensitive) == 14
    assert table.train_x.shape == (3, 6 + 3 + 7)
    np.testing.assert_allclose(np.linalg.norm(table.train_x, axis=1), 1)
    assert (table.train_x[:, [6, 7, 8]] > 0).tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, True],
    ]
    assert not table.test_x[0, [6, 7, 8]].any()  # a category that training has not seen
    assert table.test_x[0, 0] == pytest.approx(1 / 8**0.5)  # clipped to 1, as are the seven categories that are known
    assert (table.train_y.tolist(), table.test_y.tolist()) == ([0, 1, 0], [1])
    (tmp_path / "adult.test.gz").write_bytes(adult_text("1, 2"))
    with pytest.raises(ValueError, match="row 0 has 2 fields, expected 15"):
        load_adult(tmp_path)


def test_diabetes_keeps_a_constant(tmp_path):
    rows = [f"{k},{k % 3},{k % 2}" for k in range(20)]
    (tmp_path / "diabetes.csv").write_text("\n".join(["Age,BMI,Outcome", *rows]))
    table = load_diabetes(tmp_path)
    assert table.train_x.shape == (16, 3)
    np.testing.assert_allclose(table.train_x[:, :2].mean(0), 0, atol=1e-12)
    assert np.ptp(table.train_x[:, 2]) == 0
    assert np.linalg.norm(table.train_x, axis=1).max() == pytest.approx(1)
    assert table.sensitive == {"Age": [0], "BMI": [1]}
    (tmp_path / "diabetes.csv").write_text("Age,BMI\n1,2\n")
    with pytest.raises(ValueError, match="last column is 'BMI'"):
        load_diabetes(tmp_path)


@pytest.mark.parametrize("name", FEATURE_TABLES)
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"has no file {name}"):
        FEATURE_TABLES[name](tmp_path)
